//! A target that fails on purpose, in each possible way. In: a word. Out: the failure of that name.

pub fn run(input: &[u8]) {
    let has = |word: &[u8]| input.windows(word.len()).any(|part| part == word);
    assert!(!has(b"panic"), "panic requested");
    if has(b"stack") {
        deeper(0);
    }
    if has(b"memory") {
        std::hint::black_box(vec![1u8; 2 << 30]);
    }
    while has(b"hang") {
        std::hint::black_box(());
    }
}

fn deeper(level: u64) -> u64 {
    let room = std::hint::black_box([level; 64]);
    room.iter().sum::<u64>() + if level == u64::MAX { 0 } else { deeper(level + 1) }
}
