//! A target under libFuzzer: the one with the program's own name. In: inputs of libFuzzer. Out: a panic if a property does not
//! hold. Bound: libFuzzer's own, `-max_len` and `-timeout`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let target = fuzz::targets::named(env!("CARGO_BIN_NAME")).expect("each program has the name of a target");
    (target.run)(input);
});
