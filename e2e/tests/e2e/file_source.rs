//! The file source under rotation, restarts and kills: no line is lost, none is repeated without a kill, and unacknowledged
//! lines are re-read. A writer in the test acts as the app; bounded by some ten thousand lines.

use std::fs::{File, OpenOptions, rename};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::harness::{Answer, LogReceiver, Outrigger, PATIENCE, Scene, assert_counts_up, ledger_row, until};

const FILES: &str = r#"
app: { stop: { drain_timeout: 1s, grace_period: 2s, timeout: 6s } }
logs:
  sources: { files: { file: { include: ["@dir@/logs/*.log"], read_from: beginning } } }
  sinks: { main: { http: { url: "http://@receiver@/lines", compression: gzip }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
"#;

fn scene_for(receiver: &LogReceiver) -> Scene {
    let scene = Scene::new();
    scene.set("receiver", receiver.address());
    std::fs::create_dir_all(scene.path("logs")).expect("the directory can be created");
    scene
}

fn append(path: &Path, numbers: std::ops::Range<usize>) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the log can be opened");
    let text: String = numbers.map(|number| format!("a line of the app, n={number:06}\n")).collect();
    file.write_all(text.as_bytes()).expect("the log can be written");
}

/// The sink has delivered everything, so that its checkpoint is at the end.
fn wait_until_settled(outrigger: &Outrigger) {
    until(PATIENCE, "nothing is pending", || ledger_row(&outrigger.admin, "logs.sinks.main")["pending"] == 0);
}

/// Twelve rotations by rename while lines are written as fast as possible: all arrive, and none twice.
/// Guarantee: rotation-loses-nothing
#[test]
fn rotation_under_load_loses_and_repeats_nothing() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    let live = scene.path("logs/app.log");
    let (rotations, each) = (12, 4000);
    for rotation in 0..rotations {
        let mut file = OpenOptions::new().create(true).append(true).open(&live).expect("the log can be opened");
        let (first, half) = (rotation * each, each / 2);
        let mut write = |numbers: std::ops::Range<usize>| {
            for number in numbers {
                // Three small writes each, so that partial lines are read as well.
                writeln!(file, "a line of the app, n={number:06}").expect("the log can be written");
            }
        };
        write(first..first + half);
        // No real logrotate runs before the file has been read for the first time.
        until(PATIENCE, "lines of this rotation", || receiver.numbers("n=").iter().any(|number| *number >= first));
        rename(&live, scene.path(&format!("logs/app.log.{rotation}"))).expect("the log can be renamed");
        // The app keeps writing to the renamed file until it is signalled to open a new one, which it then does immediately:
        // the reader has two files to finish.
        write(first + half..first + each);
    }
    receiver.wait_for(rotations * each, PATIENCE);
    let mut numbers = receiver.numbers("n=");
    numbers.sort_unstable();
    assert_counts_up(&numbers, rotations * each);
    outrigger.finish();
    assert_eq!(receiver.len(), rotations * each, "nothing arrived twice until the end");
    receiver.assert_well_formed();
}

/// The order of lines is preserved across a rotation.
/// Guarantee: rotation-loses-nothing
#[test]
fn a_rotated_file_is_finished_before_the_next() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    let live = scene.path("logs/app.log");
    append(&live, 0..5000);
    receiver.wait_for(1, PATIENCE);
    rename(&live, scene.path("logs/app.log.1")).expect("the log can be renamed");
    append(&live, 5000..10_000);
    receiver.wait_for(10_000, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 10_000);
    outrigger.finish();
}

/// After a stop and a start, reading resumes after the acknowledged lines: lines written in between arrive once, old ones
/// never again, and a rotation in between is followed.
/// Guarantee: file-resumes-at-checkpoint
#[test]
fn a_restart_resumes_from_the_checkpoint() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let live = scene.path("logs/app.log");
    append(&live, 0..5000);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    receiver.wait_for(5000, PATIENCE);
    wait_until_settled(&outrigger);
    outrigger.finish();
    append(&live, 5000..8000);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    receiver.wait_for(8000, PATIENCE);
    wait_until_settled(&outrigger);
    assert_counts_up(&receiver.numbers("n="), 8000);
    outrigger.finish();
    assert_eq!(receiver.len(), 8000, "nothing arrived twice");
}

/// After kill -9 of everything, unacknowledged lines are re-read, and acknowledged ones are not, except for the batches in
/// flight.
/// Guarantee: no-loss-on-worker-kill, file-resumes-at-checkpoint
#[test]
fn a_kill_rereads_only_unacknowledged_lines() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let live = scene.path("logs/app.log");
    append(&live, 0..5000);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    receiver.wait_for(5000, PATIENCE);
    wait_until_settled(&outrigger);
    receiver.answer(Answer::Hang);
    append(&live, 5000..10_000);
    receiver.wait_for_refused(1, PATIENCE);
    outrigger.kill_all();
    receiver.answer(Answer::Accept);
    let before = receiver.len();
    assert_eq!(before, 5000);
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    until(PATIENCE, "the last line", || receiver.numbers("n=").last() == Some(&9999));
    wait_until_settled(&outrigger);
    outrigger.finish();
    let mut numbers = receiver.numbers("n=");
    // A batch holds at most 64 KiB of lines of 28 bytes; at most the last few acknowledged ones may arrive again.
    let repeated = numbers.len() - 10_000;
    assert!(repeated <= 2 * 64 * 1024 / 28, "{repeated} lines arrived again");
    numbers.sort_unstable();
    numbers.dedup();
    assert_counts_up(&numbers, 10_000);
}

/// `read_from: end` skips existing lines, `exclude` skips unwanted files, and a file that appears later is read from its
/// beginning.
#[test]
fn read_from_and_exclude_select_what_is_read() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let body = r#"
logs:
  sources: { files: { file: { include: ["@dir@/logs/*.log"], exclude: ["@dir@/logs/debug*.log"], read_from: end } } }
  sinks: { main: { http: { url: "http://@receiver@/lines" }, batch: { max_bytes: 64KiB, max_age: 100ms } } }
"#;
    append(&scene.path("logs/old.log"), 900_000..900_100);
    append(&scene.path("logs/debug.log"), 800_000..800_100);
    let outrigger = Outrigger::start(&scene, body, &[]);
    append(&scene.path("logs/old.log"), 0..100);
    receiver.wait_for(100, PATIENCE);
    append(&scene.path("logs/debug.log"), 800_100..800_200);
    append(&scene.path("logs/new.log"), 100..200);
    receiver.wait_for(200, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 200);
    outrigger.finish();
    assert_eq!(receiver.len(), 200, "nothing more arrived until the end");
}

/// A line is sent when it is complete: a partial line waits for its line end.
#[test]
fn a_partial_line_waits_for_its_line_end() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    let mut file = File::create(scene.path("logs/app.log")).expect("the log can be written");
    file.write_all(b"n=000000\nn=0000").expect("the log can be written");
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    receiver.wait_for(1, PATIENCE);
    // why: that nothing happens can only be observed over time, here five times the sink's `max_age`
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(receiver.messages(), ["n=000000"]);
    file.write_all(b"01\n").expect("the log can be written");
    receiver.wait_for(2, PATIENCE);
    assert_counts_up(&receiver.numbers("n="), 2);
    outrigger.finish();
}

/// Files may appear, grow and vanish simultaneously; each line that existed long enough to be acknowledged arrives.
#[test]
fn many_files_are_read_each_in_its_order() {
    let receiver = LogReceiver::start();
    let scene = scene_for(&receiver);
    for file in 0..50 {
        append(&scene.path(&format!("logs/{file:02}.log")), file * 200..(file + 1) * 200);
    }
    let outrigger = Outrigger::start(&scene, FILES, &[]);
    receiver.wait_for(10_000, PATIENCE);
    for file in 0..50 {
        let path = scene.text_path(&format!("logs/{file:02}.log"));
        let records = receiver.records().into_iter().filter(|record| record.field("file") == path);
        let numbers: Vec<usize> =
            records.filter_map(|record| crate::harness::number_after(&record.message, "n=")).collect();
        let expected: Vec<usize> = (file * 200..(file + 1) * 200).collect();
        assert_eq!(numbers, expected, "{path}");
    }
    outrigger.finish();
}
