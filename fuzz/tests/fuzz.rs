//! The targets hold over their corpus, and the loop around them finds, writes down and runs again what breaks one. In: the corpus, and
//! a target that fails on purpose. Out: verdicts. Bound: a few seconds; the time for looking belongs to `cargo xtask fuzz`.

use fuzz::attempt::attempt;
use fuzz::mutate::{Mutator, Random};
use fuzz::targets::TARGETS;
use fuzz::{scratch, watch};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FUZZ: &str = env!("CARGO_BIN_EXE_fuzz");

fn own() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every seed is an input that a target met once, or one of a real shape: all properties hold for each.
///
/// covers: faults 8
#[test]
fn every_target_holds_for_each_of_its_seeds() {
    let mut broken = Vec::new();
    for target in &TARGETS {
        let seeds = watch::seeds(&own().join("corpus").join(target.name)).expect("each target has a corpus");
        assert!(seeds.len() >= 3, "{}: {} seeds", target.name, seeds.len());
        let mut shapes = HashSet::new();
        for seed in seeds {
            assert!(seed.bytes.len() <= target.input_max, "{} is longer than an input may be", seed.name);
            match attempt(target.run, &seed.bytes, false) {
                Ok(seen) => shapes.extend(seen),
                Err(failure) => broken.push(format!("{}: {} at {}", seed.name, failure.message, failure.place)),
            }
        }
        assert!(shapes.len() > 3, "{}: its seeds look all alike", target.name);
    }
    scratch::remove();
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// The table, the files of the targets and the folders of the corpus name the same things.
///
/// covers: faults 8
#[test]
fn each_target_has_its_file_and_its_folder_of_seeds() {
    let names: HashSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len(), "no name stands twice");
    for name in &names {
        assert!(own().join("src/targets").join(format!("{name}.rs")).is_file(), "{name}");
    }
    let folders = fs::read_dir(own().join("corpus")).expect("a corpus").flatten();
    for folder in folders.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        assert!(names.contains(folder.as_str()), "corpus/{folder} belongs to no target");
    }
}

/// A finding on one machine is a finding on another: the inputs follow from the seed alone, and none is larger than allowed.
///
/// covers: faults 8
#[test]
fn mutations_follow_from_their_seed_and_stay_within_their_bound() {
    let inputs = |seed: u64| -> Vec<Vec<u8>> {
        let mut mutator = Mutator { random: Random::new(seed), words: &["word", "\r\n", ""], input_max: 300 };
        let mut inputs = vec![b"one 1\ntwo 22\n".to_vec(), Vec::new()];
        for round in 0..2000 {
            let (one, other) = (&inputs[round], &inputs[round / 2]);
            let next = mutator.mutate(one, other);
            assert!(next.len() <= 300, "{} bytes", next.len());
            inputs.push(next);
        }
        inputs
    };
    assert_eq!(inputs(7), inputs(7));
    let (some, others): (HashSet<_>, HashSet<_>) = (inputs(7).into_iter().collect(), inputs(8).into_iter().collect());
    assert!(some.len() > 1000, "{} different inputs", some.len());
    assert!(others.difference(&some).count() > 1000, "another seed makes others");
}

struct Run {
    folder: PathBuf,
}

impl Run {
    fn new(name: &str, seed: &str) -> Run {
        let folder = std::env::temp_dir().join(format!("outrigger-fuzz-test-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("corpus/itself")).expect("a folder");
        fs::write(folder.join("corpus/itself/seed"), seed).expect("a seed");
        Run { folder }
    }

    fn fuzz(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(FUZZ);
        command.arg("itself").args(arguments).arg("--corpus").arg(self.folder.join("corpus"));
        command.arg("--findings").arg(self.folder.join("findings"));
        command.output().expect("the program runs")
    }

    fn findings(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.join("findings")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // What cannot be removed lies in a place for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One byte from a panic: mutation finds it, the input is made as small as it can be, written down, named, and fails again by itself.
///
/// covers: faults 8
#[test]
fn a_panic_is_found_made_small_written_down_and_runs_again() {
    let run = Run::new("panic", "before it: pani?, and behind it");
    let output = run.fuzz(&["--for", "20s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let findings = run.findings();
    let [finding] = findings.as_slice() else { panic!("{findings:?}: {}", text(&output.stderr)) };
    assert_eq!(fs::read_to_string(finding).ok().as_deref(), Some("panic"), "nothing of it can be left out");
    let told = text(&output.stderr);
    assert!(told.contains(&finding.display().to_string()) && told.contains("asked to panic"), "{told}");
    assert!(told.contains("targets/itself.rs:"), "the place is named: {told}");

    let path = finding.to_str().expect("a plain path");
    assert_eq!(run.fuzz(&["--input", path]).status.code(), Some(1));
    fs::write(finding, "harmless").expect("written");
    assert_eq!(run.fuzz(&["--input", path]).status.code(), Some(0));
}

/// What ends the process cannot be caught in it: the watching one still knows the input.
///
/// covers: faults 8
#[test]
fn a_hang_a_stack_without_room_and_memory_without_bound_are_found() {
    for (word, why) in [("hang", "of CPU"), ("stack", "signal 6"), ("memory", "signal 6")] {
        let run = Run::new(word, word);
        let output = run.fuzz(&["--for", "1s"]);
        assert_eq!(output.status.code(), Some(1), "{word}: {}", text(&output.stderr));
        let findings = run.findings();
        let [finding] = findings.as_slice() else { panic!("{word}: {findings:?}: {}", text(&output.stderr)) };
        assert_eq!(fs::read_to_string(finding).ok().as_deref(), Some(word));
        assert!(text(&output.stderr).contains(why), "{word}: {}", text(&output.stderr));
    }
}
