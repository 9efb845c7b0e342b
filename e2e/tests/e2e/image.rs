//! The container image as `deploy/container/Containerfile` builds it: its content, its user, and that the same program gives
//! the same image. In: the program and the Containerfile. Out: an image. Bounded by podman's own limits.

use crate::harness::outrigger::outrigger;
use crate::harness::podman::{APP_IMAGE, IMAGE, NO_PODMAN, Podman};
use crate::harness::{PATIENCE, Scene, until, workspace};

/// As strict as a platform can be: an unprivileged user, nothing writable, no capability, no new privilege.
const STRICT: [&str; 6] =
    ["run", "--rm", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"];

/// One program and nothing else: no shell, no library, no user database.
#[test]
fn the_image_has_one_program_and_nothing_else() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let container = podman.run(&["create", IMAGE]);
    let archive = scene.text_path("root.tar");
    podman.run(&["export", "--output", &archive, container.trim()]);
    let listed = std::process::Command::new("tar").args(["--list", "--file", &archive]).output().expect("tar runs");
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    // podman creates the directories for /proc, /sys and the like in each container.
    let files: Vec<&str> = names.lines().filter(|name| !name.ends_with('/')).collect();
    assert!(files.contains(&"outrigger"), "{names}");
    let is_product =
        |name: &&&str| !["etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"].contains(*name);
    let product: Vec<_> = files.iter().filter(is_product).filter(|name| !name.starts_with("dev/")).collect();
    assert_eq!(product, [&"outrigger"], "{names}");
}

#[test]
fn the_image_runs_unprivileged_and_has_labels() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    podman.build_product(&scene, "labelled", &["--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc"]);
    let shown = podman.run(&["image", "inspect", "labelled"]);
    let image: serde_json::Value = serde_json::from_str(&shown).expect("an inspection is JSON");
    let config = &image[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/outrigger"]));
    assert_eq!(config["Cmd"], serde_json::json!(["run", "-c", "/etc/outrigger/outrigger.yaml"]));
    assert!(
        config["Volumes"].is_null() && config["ExposedPorts"].is_null(),
        "no volume and no port is preset: {config}"
    );
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(
        (label("title"), label("version"), label("revision")),
        ("Outrigger".into(), "1.2.3".into(), "abc".into())
    );
    assert_eq!(label("licenses"), "Apache-2.0");
}

/// The same program gives the same image, at any time and from any copy.
#[test]
fn the_same_program_gives_the_same_image() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let first = podman.build_product(&scene, "first", &[]);
    let copy = scene.path("image-context/outrigger");
    let text = std::fs::read(&copy).expect("the program exists");
    std::fs::remove_file(&copy).expect("the test owns the copy");
    std::fs::write(&copy, text).expect("the scene is writable");
    let second = podman.build_product(&scene, "second", &[]);
    assert_eq!(first, second);
    std::fs::write(&copy, "another program").expect("the scene is writable");
    assert_ne!(first, podman.build_product(&scene, "third", &[]));
}

/// Each command that needs no file works in the image under the strictest limits, and returns its exit code.
#[test]
fn the_image_works_without_other_files() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let strict =
        |arguments: &[&str]| podman.try_run(&[STRICT.as_slice(), &["--network=none", IMAGE], arguments].concat());
    let (code, stdout, stderr) = strict(&["--version"]);
    assert_eq!((code, stdout), (0, outrigger(&["--version"]).1), "{stderr}");
    let (code, stdout, _) = strict(&["schema"]);
    assert_eq!((code, stdout), (0, outrigger(&["schema"]).1));
    // Without arguments it runs its default command, and reports which file is missing.
    let (code, _, stderr) = podman.try_run(&[STRICT.as_slice(), &["--network=none", IMAGE]].concat());
    assert_eq!(code, 1);
    assert!(stderr.contains("/etc/outrigger/outrigger.yaml"), "{stderr}");
}

/// With its configuration as the only volume it runs, reports that nothing is persisted, and exits with 0 on a stop.
#[test]
fn a_container_without_volumes_runs_and_stops() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    scene.write("settings/outrigger.yaml", "admin: { probes_listen: \"127.0.0.1:9901\" }\n");
    let volume = format!("{}:/etc/outrigger:ro", scene.text_path("settings"));
    let run = [STRICT.as_slice(), &["--network=none", "--detach", "--name=alone", "--volume", &volume, IMAGE]].concat();
    // Not removed after its exit, for its exit code.
    let run: Vec<&str> = run.into_iter().filter(|word| *word != "--rm").collect();
    podman.run(&run);
    until(PATIENCE, "it reports that its state cannot be persisted", || {
        podman.logs("alone").contains("/var/lib/outrigger")
    });
    podman.run(&["stop", "--time=30", "alone"]);
    assert_eq!(podman.exit_code("alone", PATIENCE), 0, "{}", podman.logs("alone"));
}

/// An app's own image with two more lines: Outrigger is its first process, and the app's exit code is the container's.
#[test]
fn a_wrapped_app_image_exits_with_the_apps_code() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let recipe = workspace().join("deploy/container/Containerfile.wrapped").display().to_string();
    let (app, outrigger) = (format!("--build-arg=APP={APP_IMAGE}"), format!("--build-arg=OUTRIGGER={IMAGE}"));
    let context = scene.text_path("image-context");
    podman.run(&["build", "--quiet", "--pull=never", "--tag=wrapped", "--file", &recipe, &app, &outrigger, &context]);
    let command = r#"app: { command: ["/bin/busybox", "sh", "-c", "echo from the app; exit 9"] }"#;
    scene.write("settings/outrigger.yaml", command);
    let volume = format!("--volume={}:/etc/outrigger:ro", scene.text_path("settings"));
    let (code, stdout, stderr) = podman.try_run(&["run", "--rm", "--network=none", &volume, "wrapped"]);
    assert_eq!((code, stdout.as_str()), (9, "from the app\n"), "{stderr}");
}

/// Every configuration in the files under `deploy/` is valid.
#[test]
fn every_configuration_under_deploy_is_valid() {
    let scene = Scene::new();
    let mut files = Vec::new();
    for directory in ["deploy", "deploy/kubernetes", "deploy/systemd"] {
        let entries = std::fs::read_dir(workspace().join(directory)).expect("the directory exists").flatten();
        files.extend(entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "yaml")));
    }
    let mut checked = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("the file can be read");
        for (number, configuration) in configurations(&text).into_iter().enumerate() {
            let path = scene.write(&format!("{number}.yaml"), &configuration).display().to_string();
            let (code, _, stderr) = outrigger(&["validate", "-c", &path]);
            assert_eq!(code, 0, "{}: {stderr}{configuration}", file.display());
            checked += 1;
        }
    }
    assert!(checked >= 5, "only {checked} configurations were found: is the mark `outrigger.yaml: |` still there?");
}

/// A kubelet that restarts the container while a hung worker is about to be replaced also ends the app or its requests. The
/// watchdog and the following start finish within this time, by a wide margin.
const REPLACED_WITHIN: u64 = 30;

#[test]
fn liveness_probe_outlasts_a_worker_replacement() {
    let mut probes = 0;
    for entry in std::fs::read_dir(workspace().join("deploy/kubernetes")).expect("the directory exists").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("the file can be read");
        let blocks = blocks(&text, &["livenessProbe:"]);
        let written = text.lines().filter(|line| line.trim_start().starts_with("livenessProbe:")).count();
        assert_eq!(blocks.len(), written, "{}: every probe is written as a block", entry.path().display());
        for block in blocks {
            let value = |key: &str, default| {
                let mut lines = block.lines().map(str::trim);
                let value = lines.find_map(|line| line.strip_prefix(key)).map(|text| text.split('#').next());
                value.map_or(default, |text| text.and_then(|text| text.trim().parse().ok()).expect("an integer"))
            };
            // The defaults are those of Kubernetes.
            let patience = value("periodSeconds:", 10_u64) * value("failureThreshold:", 3);
            assert!(patience > REPLACED_WITHIN, "{}: {patience} s\n{block}", entry.path().display());
            assert!(block.contains("path: /live,"), "{}: {block}", entry.path().display());
            probes += 1;
        }
    }
    assert!(probes >= 2, "only {probes} probes were found");
}

/// The blocks of text under a key `outrigger.yaml: |` (of a ConfigMap) or `content: |` (of Compose).
fn configurations(text: &str) -> Vec<String> {
    blocks(text, &["outrigger.yaml: |", "content: |"])
}

/// The text below each line that is one of these keys, without its indentation.
fn blocks(text: &str, keys: &[&str]) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let starts = lines.iter().enumerate().filter(|(_, line)| keys.contains(&line.trim()));
    starts
        .map(|(start, key)| {
            let inside =
                lines[start + 1..].iter().take_while(|line| line.trim().is_empty() || indent(line) > indent(key));
            let inside: Vec<&str> = inside.copied().collect();
            let margin =
                inside.iter().filter(|line| !line.trim().is_empty()).map(|line| indent(line)).min().unwrap_or(0);
            let cut: Vec<&str> = inside.iter().map(|line| line.get(margin..).unwrap_or("")).collect();
            cut.join("\n") + "\n"
        })
        .collect()
}
