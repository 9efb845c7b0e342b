//! The container image as `deploy/container/Containerfile` makes it: what is in it, as whom it runs, and that the same
//! program gives the same image. The program and the recipe come in, an image goes out. Bounded by podman's own limits.

use crate::harness::outrigger::outrigger;
use crate::harness::podman::{APP_IMAGE, IMAGE, NO_PODMAN, Podman};
use crate::harness::{PATIENCE, Scene, until, workspace};

/// As strict as a platform can be: nobody, nothing writable, no capability, no new privilege.
const STRICT: [&str; 6] =
    ["run", "--rm", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"];

/// One program and nothing else: no shell, no library, no user database.
/// covers: attachment 7
#[test]
fn the_image_holds_one_program_and_nothing_else() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let container = podman.run(&["create", IMAGE]);
    let archive = scene.text_path("root.tar");
    podman.run(&["export", "--output", &archive, container.trim()]);
    let listed = std::process::Command::new("tar").args(["--list", "--file", &archive]).output().expect("tar runs");
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    // Folders for /proc, /sys and the like are podman's own, made for each container.
    let files: Vec<&str> = names.lines().filter(|name| !name.ends_with('/')).collect();
    assert!(files.contains(&"outrigger"), "{names}");
    let ours = |name: &&&str| !["etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"].contains(*name);
    let ours: Vec<_> = files.iter().filter(ours).filter(|name| !name.starts_with("dev/")).collect();
    assert_eq!(ours, [&"outrigger"], "{names}");
}

/// covers: attachment 7
#[test]
fn the_image_runs_as_nobody_and_says_what_it_is() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    podman.build_product(&scene, "labelled", &["--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc"]);
    let shown = podman.run(&["image", "inspect", "labelled"]);
    let image: serde_json::Value = serde_json::from_str(&shown).expect("an inspection is JSON");
    let config = &image[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/outrigger"]));
    assert_eq!(config["Cmd"], serde_json::json!(["run", "-c", "/etc/outrigger/outrigger.yaml"]));
    assert!(config["Volumes"].is_null() && config["ExposedPorts"].is_null(), "nothing is decided for others: {config}");
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(
        (label("title"), label("version"), label("revision")),
        ("Outrigger".into(), "1.2.3".into(), "abc".into())
    );
    assert_eq!(label("licenses"), "Apache-2.0");
}

/// The same program gives the same image, whenever and from whatever copy it is built.
/// covers: attachment 7
#[test]
fn the_same_program_gives_the_same_image() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let first = podman.build_product(&scene, "first", &[]);
    let copy = scene.path("image-context/outrigger");
    let text = std::fs::read(&copy).expect("the program is there");
    std::fs::remove_file(&copy).expect("it is our copy");
    std::fs::write(&copy, text).expect("the scene takes files");
    let second = podman.build_product(&scene, "second", &[]);
    assert_eq!(first, second);
    std::fs::write(&copy, "another program").expect("the scene takes files");
    assert_ne!(first, podman.build_product(&scene, "third", &[]));
}

/// Each command that needs no file works in the image under the strictest limits, and gives its exit code.
/// covers: attachment 7
#[test]
fn the_image_works_with_nothing_but_itself() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let strict =
        |arguments: &[&str]| podman.try_run(&[STRICT.as_slice(), &["--network=none", IMAGE], arguments].concat());
    let (code, stdout, stderr) = strict(&["--version"]);
    assert_eq!((code, stdout), (0, outrigger(&["--version"]).1), "{stderr}");
    let (code, stdout, _) = strict(&["schema"]);
    assert_eq!((code, stdout), (0, outrigger(&["schema"]).1));
    // Without arguments it runs its default command, and says which file is missing.
    let (code, _, stderr) = podman.try_run(&[STRICT.as_slice(), &["--network=none", IMAGE]].concat());
    assert_eq!(code, 1);
    assert!(stderr.contains("/etc/outrigger/outrigger.yaml"), "{stderr}");
}

/// Without any volume but its configuration it runs, says that nothing is kept, and ends with 0 when it is told to stop.
/// covers: attachment 7
#[test]
fn a_container_without_volumes_runs_and_stops() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    scene.write("settings/outrigger.yaml", "admin: { probes_listen: \"127.0.0.1:9901\" }\n");
    let volume = format!("{}:/etc/outrigger:ro", scene.text_path("settings"));
    let run = [STRICT.as_slice(), &["--network=none", "--detach", "--name=alone", "--volume", &volume, IMAGE]].concat();
    // Kept after its end, for its exit code.
    let run: Vec<&str> = run.into_iter().filter(|word| *word != "--rm").collect();
    podman.run(&run);
    until(PATIENCE, "it says that its state cannot be kept", || podman.logs("alone").contains("/var/lib/outrigger"));
    podman.run(&["stop", "--time=30", "alone"]);
    assert_eq!(podman.exit_code("alone", PATIENCE), 0, "{}", podman.logs("alone"));
}

/// An app's own image with two lines more: Outrigger is its first process, and its code is the container's.
/// covers: attachment 1
/// covers: attachment 7
#[test]
fn an_apps_image_with_outrigger_around_it_ends_with_the_apps_code() {
    let scene = Scene::new();
    let podman = need!(Podman::start(&scene), NO_PODMAN);
    let recipe = workspace().join("deploy/container/Containerfile.wrapped").display().to_string();
    let (app, ours) = (format!("--build-arg=APP={APP_IMAGE}"), format!("--build-arg=OUTRIGGER={IMAGE}"));
    let context = scene.text_path("image-context");
    podman.run(&["build", "--quiet", "--pull=never", "--tag=wrapped", "--file", &recipe, &app, &ours, &context]);
    let command = r#"app: { command: ["/bin/busybox", "sh", "-c", "echo from the app; exit 9"] }"#;
    scene.write("settings/outrigger.yaml", command);
    let volume = format!("--volume={}:/etc/outrigger:ro", scene.text_path("settings"));
    let (code, stdout, stderr) = podman.try_run(&["run", "--rm", "--network=none", &volume, "wrapped"]);
    assert_eq!((code, stdout.as_str()), (9, "from the app\n"), "{stderr}");
}

/// What the files under `deploy/` show as configuration is valid, in every one of them.
/// covers: attachment 7
#[test]
fn every_configuration_under_deploy_is_valid() {
    let scene = Scene::new();
    let mut files = Vec::new();
    for folder in ["deploy", "deploy/kubernetes", "deploy/systemd"] {
        let entries = std::fs::read_dir(workspace().join(folder)).expect("the folder is there").flatten();
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

/// A kubelet that restarts the container while a hung worker is about to be replaced takes the app or its requests with it. The
/// watchdog and the start after it are over within this time, by a wide margin.
const REPLACED_WITHIN: u64 = 30;

/// covers: attachment 2
/// covers: attachment 7
#[test]
fn a_liveness_probe_is_slower_than_the_replacement_of_a_hung_worker() {
    let mut probes = 0;
    for entry in std::fs::read_dir(workspace().join("deploy/kubernetes")).expect("the folder is there").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("the file can be read");
        let blocks = blocks(&text, &["livenessProbe:"]);
        let written = text.lines().filter(|line| line.trim_start().starts_with("livenessProbe:")).count();
        assert_eq!(blocks.len(), written, "{}: every probe is written as a block", entry.path().display());
        for block in blocks {
            let value = |key: &str, default| {
                let mut lines = block.lines().map(str::trim);
                let value = lines.find_map(|line| line.strip_prefix(key)).map(|text| text.split('#').next());
                value.map_or(default, |text| text.and_then(|text| text.trim().parse().ok()).expect("a whole number"))
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

/// What is written below each line that is one of these keys, with its indent taken away.
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
