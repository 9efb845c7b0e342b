//! `cargo xtask image`: the container image, from a program that is built already and deploy/container/Containerfile.
//! In: `--binary PATH`, and where wanted `--tag NAME` and `--output FILE.tar`. Out: the image in podman's store, or an
//! archive that `podman load` and `docker load` take. Bound: the program must be static and nothing else enters the image;
//! its time is that of the last commit, so that the same program and commit give the same image, byte by byte.

use crate::shell::{self, Outcome};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const RECIPE: &str = "deploy/container/Containerfile";
const USAGE: &str = "cargo xtask image --binary target/<triple>/release/outrigger [--tag NAME] [--output FILE.tar]";

#[derive(Debug, PartialEq)]
struct Wishes {
    binary: PathBuf,
    tag: String,
    output: Option<PathBuf>,
}

pub fn run(arguments: &[String]) -> Outcome {
    let wishes = wishes(arguments)?;
    let program = fs::read(&wishes.binary)
        .map_err(|error| format!("{} cannot be read: {error}. help: {USAGE}", wishes.binary.display()))?;
    is_static(&program).map_err(|why| format!("{} {why}", wishes.binary.display()))?;
    let podman = shell::find("podman").ok_or("podman is missing. help: cargo xtask peers")?;

    let context = lay_context(&program)?;
    shell::run(build(&podman, &wishes.tag, &context).current_dir(shell::root()))?;
    println!("image {}", wishes.tag);
    if let Some(output) = &wishes.output {
        // podman adds to an archive that is there; ours is whole and alone.
        if output.exists() {
            fs::remove_file(output).map_err(|error| format!("cannot replace {}: {error}", output.display()))?;
        }
        let mut save = Command::new(&podman);
        save.args(["save", "--quiet", "--format", "docker-archive", "--output"]).arg(output).arg(&wishes.tag);
        shell::run(&mut save)?;
        println!("archive {}", output.display());
    }
    Ok(())
}

fn wishes(arguments: &[String]) -> Outcome<Wishes> {
    let mut wishes = Wishes { binary: PathBuf::new(), tag: "localhost/outrigger:latest".to_string(), output: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value. help: {USAGE}"));
        match word.as_str() {
            "--binary" => wishes.binary = PathBuf::from(value()?),
            "--tag" => wishes.tag = value()?.clone(),
            "--output" => wishes.output = Some(PathBuf::from(value()?)),
            unknown => return Err(format!("`{unknown}` is not understood. help: {USAGE}")),
        }
    }
    match wishes.binary.as_os_str().is_empty() {
        true => Err(format!("which program goes into the image? help: {USAGE}")),
        false => Ok(wishes),
    }
}

/// A folder with the program and nothing else, which is all that the recipe can see.
fn lay_context(program: &[u8]) -> Outcome<PathBuf> {
    let context = shell::target().join("image");
    let path = context.join("outrigger");
    let lay = || -> std::io::Result<()> {
        if context.exists() {
            fs::remove_dir_all(&context)?;
        }
        fs::create_dir_all(&context)?;
        fs::write(&path, program)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    lay().map_err(|error| format!("cannot lay {}: {error}", path.display()))?;
    Ok(context)
}

fn build(podman: &Path, tag: &str, context: &Path) -> Command {
    let mut command = Command::new(podman);
    // Nothing of the builder's own: no label with its version, no time but the commit's, no layer of an earlier build,
    // whose cache does not see that an argument of a label has changed.
    command.args(["build", "--quiet", "--no-cache", "--identity-label=false", "--file", RECIPE, "--tag", tag]);
    command.arg(format!("--timestamp={}", git(&["log", "-1", "--format=%ct"]).unwrap_or("0".to_string())));
    command.arg(format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")));
    command.arg(format!("--build-arg=REVISION={}", git(&["rev-parse", "HEAD"]).unwrap_or("unknown".to_string())));
    command.arg(context);
    command
}

/// What git says of this repository; a source archive without git still gives an image.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(shell::root()).output().ok()?;
    let words = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !words.is_empty()).then_some(words)
}

/// An empty image has no loader and no C library: a program that asks for one would not even start.
fn is_static(program: &[u8]) -> Outcome {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("is no 64-bit little-endian ELF program".to_string());
    }
    // Elf64_Ehdr (ELF-64 object file format, figures 2 and 6): e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let (Some(first), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Err("is cut short".to_string());
    };
    let kinds = (0..count).map(|index| number(first + index * size, 4));
    match kinds.into_iter().any(|kind| kind == Some(INTERPRETER as usize)) {
        true => {
            Err("is linked dynamically and cannot run in an empty image. help: build it as .cargo/config.toml says, \
                     for the target that it names"
                .to_string())
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: attachment 7
    #[test]
    fn wishes_are_read_and_mistakes_are_named() {
        let read = |words: &[&str]| wishes(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        let read_ok = read(&["--binary", "b", "--tag", "t", "--output", "o.tar"]).expect("all of them are known");
        assert_eq!(read_ok, Wishes { binary: "b".into(), tag: "t".to_string(), output: Some("o.tar".into()) });
        for (words, expect) in
            [(&[][..], "which program"), (&["--binary"], "needs a value"), (&["--binry", "b"], "`--binry`")]
        {
            let error = read(words).expect_err("this is a mistake");
            assert!(error.contains(expect) && error.contains("help:"), "{words:?}: {error}");
        }
    }

    /// covers: attachment 7
    #[test]
    fn a_program_that_needs_a_loader_is_refused() {
        // One program header of the given kind, behind the 64 bytes of the head.
        let program = |kind: u8| {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.resize(64 + 56, 0);
            (bytes[32], bytes[54], bytes[56], bytes[64]) = (64, 56, 1, kind);
            bytes
        };
        assert_eq!(is_static(&program(1)), Ok(()));
        assert!(is_static(&program(3)).is_err_and(|why| why.contains("dynamically")));
        assert!(is_static(b"#!/bin/sh\n").is_err_and(|why| why.contains("ELF")));
        assert!(is_static(b"\x7fELF\x02\x01").is_err_and(|why| why.contains("short")));
    }

    /// The recipe is where the task looks for it, and asks for nothing that the task does not give.
    /// covers: attachment 7
    #[test]
    fn the_recipe_gets_the_arguments_that_it_names() {
        let recipe = fs::read_to_string(shell::root().join(RECIPE)).expect("the recipe is there");
        let named: Vec<_> = recipe.lines().filter_map(|line| line.strip_prefix("ARG ")?.split('=').next()).collect();
        let given = shell::show(&build(Path::new("podman"), "t", Path::new("c")));
        assert_eq!(named, ["VERSION", "REVISION"]);
        assert!(named.iter().all(|name| given.contains(&format!("--build-arg={name}="))), "{given}");
    }
}
