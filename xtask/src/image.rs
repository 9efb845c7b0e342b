//! `cargo xtask image`: the container image, from a program that is built already and deploy/container/Containerfile.
//! In: `--binary PATH`, and optionally `--tag NAME` and `--output FILE.tar`. Out: the image in podman's store, or an archive for
//! `podman load` and `docker load`. Bound: the program must be static and nothing else enters the image; its time is that of the
//! last commit, so that the same program and commit produce the same image, byte for byte.

use crate::shell::{self, Outcome};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const RECIPE: &str = "deploy/container/Containerfile";
const USAGE: &str = "cargo xtask image --binary target/<triple>/release/outrigger [--tag NAME] [--output FILE.tar]";

#[derive(Debug, PartialEq)]
struct Options {
    binary: PathBuf,
    tag: String,
    output: Option<PathBuf>,
}

pub fn run(arguments: &[String]) -> Outcome {
    let options = options(arguments)?;
    let program = fs::read(&options.binary)
        .map_err(|error| format!("cannot read {}: {error}. help: {USAGE}", options.binary.display()))?;
    is_static(&program).map_err(|why| format!("{} {why}", options.binary.display()))?;
    let podman = shell::find("podman").ok_or("podman is missing. help: cargo xtask peers")?;

    let context = create_context(&program)?;
    shell::run(build(&podman, &options.tag, &context).current_dir(shell::root()))?;
    println!("image {}", options.tag);
    if let Some(output) = &options.output {
        // podman appends to an existing archive; this one is to hold only this image.
        if output.exists() {
            fs::remove_file(output).map_err(|error| format!("cannot replace {}: {error}", output.display()))?;
        }
        let mut save = Command::new(&podman);
        save.args(["save", "--quiet", "--format", "docker-archive", "--output"]).arg(output).arg(&options.tag);
        shell::run(&mut save)?;
        println!("archive {}", output.display());
    }
    Ok(())
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let mut options = Options { binary: PathBuf::new(), tag: "localhost/outrigger:latest".to_string(), output: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value. help: {USAGE}"));
        match word.as_str() {
            "--binary" => options.binary = PathBuf::from(value()?),
            "--tag" => options.tag = value()?.clone(),
            "--output" => options.output = Some(PathBuf::from(value()?)),
            unknown => return Err(format!("unknown argument `{unknown}`. help: {USAGE}")),
        }
    }
    match options.binary.as_os_str().is_empty() {
        true => Err(format!("`--binary` is required. help: {USAGE}")),
        false => Ok(options),
    }
}

/// A build context with only the program.
fn create_context(program: &[u8]) -> Outcome<PathBuf> {
    let context = shell::target().join("image");
    let path = context.join("outrigger");
    let create = || -> std::io::Result<()> {
        if context.exists() {
            fs::remove_dir_all(&context)?;
        }
        fs::create_dir_all(&context)?;
        fs::write(&path, program)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    create().map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    Ok(context)
}

fn build(podman: &Path, tag: &str, context: &Path) -> Command {
    let mut command = Command::new(podman);
    // Reproducible: no label with the builder's version, no time but the commit's, no layer of an earlier build, whose cache does
    // not detect that an argument of a label has changed.
    command.args(["build", "--quiet", "--no-cache", "--identity-label=false", "--file", RECIPE, "--tag", tag]);
    command.arg(format!("--timestamp={}", git(&["log", "-1", "--format=%ct"]).unwrap_or("0".to_string())));
    command.arg(format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")));
    command.arg(format!("--build-arg=REVISION={}", git(&["rev-parse", "HEAD"]).unwrap_or("unknown".to_string())));
    command.arg(context);
    command
}

/// The output of git for this repository; an image can be built from a source archive without git too.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(shell::root()).output().ok()?;
    let words = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !words.is_empty()).then_some(words)
}

/// An empty image has no loader and no C library: a program that requires one would not start.
fn is_static(program: &[u8]) -> Outcome {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    if program.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err("is not a 64-bit little-endian ELF program".to_string());
    }
    // Elf64_Ehdr and Elf64_Phdr (ELF-64 object file format): e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let (Some(first), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return Err("is truncated".to_string());
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

    #[test]
    fn options_are_parsed_and_errors_have_help() {
        let read = |words: &[&str]| options(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>());
        let read_ok = read(&["--binary", "b", "--tag", "t", "--output", "o.tar"]).expect("all options are known");
        assert_eq!(read_ok, Options { binary: "b".into(), tag: "t".to_string(), output: Some("o.tar".into()) });
        for (words, expect) in
            [(&[][..], "`--binary` is required"), (&["--binary"], "needs a value"), (&["--binry", "b"], "`--binry`")]
        {
            let error = read(words).expect_err("invalid arguments");
            assert!(error.contains(expect) && error.contains("help:"), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_program_that_needs_a_loader_is_rejected() {
        // One program header of the given type, after the 64 bytes of the ELF header.
        let program = |kind: u8| {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.resize(64 + 56, 0);
            (bytes[32], bytes[54], bytes[56], bytes[64]) = (64, 56, 1, kind);
            bytes
        };
        assert_eq!(is_static(&program(1)), Ok(()));
        assert!(is_static(&program(3)).is_err_and(|why| why.contains("dynamically")));
        assert!(is_static(b"#!/bin/sh\n").is_err_and(|why| why.contains("ELF")));
        assert!(is_static(b"\x7fELF\x02\x01").is_err_and(|why| why.contains("truncated")));
    }

    /// The recipe exists, and declares only arguments that the task passes.
    #[test]
    fn the_recipe_gets_the_arguments_it_declares() {
        let recipe = fs::read_to_string(shell::root().join(RECIPE)).expect("the recipe exists");
        let declared: Vec<_> = recipe.lines().filter_map(|line| line.strip_prefix("ARG ")?.split('=').next()).collect();
        let passed = shell::show(&build(Path::new("podman"), "t", Path::new("c")));
        assert_eq!(declared, ["VERSION", "REVISION"]);
        assert!(declared.iter().all(|name| passed.contains(&format!("--build-arg={name}="))), "{passed}");
    }
}
