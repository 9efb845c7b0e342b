//! The targets hold for their corpus, and the loop around them finds, records and re-runs an input that breaks one. In: the
//! corpus, and a target that fails on purpose. Out: passed or failed. Bound: a few seconds; searching is the job of `cargo xtask
//! fuzz`.

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

/// Every seed is a former finding, or an input of a real shape: all properties hold for each.
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
        assert!(shapes.len() > 3, "{}: its seeds have too few shapes", target.name);
    }
    scratch::remove();
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// The table, the files of the targets and the directories of the corpus have the same names.
#[test]
fn each_target_has_its_file_and_its_seeds() {
    let names: HashSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names.len(), TARGETS.len(), "no duplicate names");
    for name in &names {
        assert!(own().join("src/targets").join(format!("{name}.rs")).is_file(), "{name}");
    }
    let directories = fs::read_dir(own().join("corpus")).expect("a corpus").flatten();
    for directory in directories.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        assert!(names.contains(directory.as_str()), "corpus/{directory} has no target");
    }
}

/// A finding on one machine is a finding on another: the inputs depend on the seed only, and none exceeds the limit.
#[test]
fn mutations_are_deterministic_and_limited() {
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
    assert!(others.difference(&some).count() > 1000, "another seed produces other inputs");
}

struct Run {
    directory: PathBuf,
}

impl Run {
    fn new(name: &str, seed: &str) -> Run {
        let directory = std::env::temp_dir().join(format!("outrigger-fuzz-test-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("corpus/itself")).expect("a directory");
        fs::write(directory.join("corpus/itself/seed"), seed).expect("a seed");
        Run { directory }
    }

    fn fuzz(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(FUZZ);
        command.arg("itself").args(arguments).arg("--corpus").arg(self.directory.join("corpus"));
        command.arg("--findings").arg(self.directory.join("findings"));
        command.output().expect("the program runs")
    }

    fn findings(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.directory.join("findings")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // If this fails, the files remain in a directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One byte from a panic: mutation finds it, the input is minimized, recorded and reported, and fails again by itself.
#[test]
fn a_panic_is_found_minimized_and_reproduced() {
    let run = Run::new("panic", "before it: pani?, and after it");
    let output = run.fuzz(&["--for", "20s"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let findings = run.findings();
    let [finding] = findings.as_slice() else { panic!("{findings:?}: {}", text(&output.stderr)) };
    assert_eq!(fs::read_to_string(finding).ok().as_deref(), Some("panic"), "the input is minimal");
    let report = text(&output.stderr);
    assert!(report.contains(&finding.display().to_string()) && report.contains("panic requested"), "{report}");
    assert!(report.contains("targets/itself.rs:"), "the report has the place: {report}");

    let path = finding.to_str().expect("a plain path");
    assert_eq!(run.fuzz(&["--input", path]).status.code(), Some(1));
    fs::write(finding, "harmless").expect("written");
    assert_eq!(run.fuzz(&["--input", path]).status.code(), Some(0));
}

/// An exit of the process cannot be caught in it: the watching process still has the input.
#[test]
fn hangs_stack_overflows_and_ooms_are_found() {
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
