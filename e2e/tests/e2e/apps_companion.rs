//! The apps of `apps.rs` with us as a companion: the test starts the app as somebody else would, and we share its network,
//! its folder and its process ids. Lines of its log file, its page, configuration and requests pass through us; the app
//! shows what it shows alone. Bounded as there.

use crate::apps::{App, Mode, assert_both_on_the_books, assert_received};
use crate::apps_table::{JAVA, Kind, NGINX, NODE, PYTHON, REDIS, SHELL};
use crate::harness::git::published;
use crate::harness::process::Signal;
use crate::harness::{LogReceiver, Outrigger, PATIENCE, SECOND, Wait, ledger_balances, until};

/// Both runs, and everything of the second at its receivers. `None` where something is not installed.
fn check(kind: &'static Kind) -> Option<()> {
    let expected = App::place(kind, Mode::Companion)?.alone();
    let app = App::place(kind, Mode::Companion)?;
    let repository = app.repository()?;
    let receiver = LogReceiver::start();
    app.scene.set("file", receiver.address());
    let configuration = app.configuration();
    let start = || {
        let outrigger = Outrigger::start_and(&app.scene, &configuration, &[], Wait::Started);
        until(PATIENCE, "the first generation", || published(&app.scene.path("settings")) == Ok(Some(1)));
        outrigger
    };
    let (mut running, outrigger) = match app.comes_first() {
        true => {
            let running = app.start();
            app.await_served();
            (running, start())
        }
        false => {
            let outrigger = start();
            (app.start(), outrigger)
        }
    };
    until(PATIENCE, "it is ready, since the app serves", || outrigger.status_of("/ready") == 200);
    let front = format!("127.0.0.1:{}", app.scene.value("front"));
    app.drive(&running.stdout, &front, || app.push(&repository));
    app.assert_measured();
    assert_both_on_the_books(&outrigger);
    ledger_balances(&outrigger.admin);
    // As at the end of a Pod: both are told at once, and we outlast the app.
    outrigger.signal(Signal::TERM);
    running.signal(Signal::TERM);
    let code = running.wait(PATIENCE);
    let exit = outrigger.wait(40 * SECOND);
    assert_eq!(exit.code, 0, "the app's code is its own: {}", exit.stderr);
    assert!(exit.took < 20 * SECOND, "it ends before its deadline: {:?}", exit.took);
    let shown = app.shown(code, &running.stdout.text(), &running.stderr.text());
    shown.assert_same_as(&expected, kind);
    assert_received("its file at the receiver", &receiver.messages(), &shown.file, &exit.stderr);
    app.assert_saved();
    receiver.assert_well_formed();
    Some(())
}

/// It has no signal from us and needs none: what it serves out of the folder is the new revision at once.
/// covers: attachment 12
#[test]
fn nginx_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&NGINX), "nginx or git is not installed");
}

/// covers: attachment 12
#[test]
fn a_python_app_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&PYTHON), "python3 or git is not installed");
}

/// covers: attachment 12
#[test]
fn a_node_server_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&NODE), "node or git is not installed");
}

/// covers: attachment 12
#[test]
fn a_java_server_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&JAVA), "java or git is not installed");
}

/// Its log is a file this time, and it takes its users from the folder.
/// covers: attachment 12
#[test]
fn redis_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&REDIS), "redis-server or git is not installed");
}

/// covers: attachment 12
#[test]
fn a_shell_script_has_a_companion_and_is_what_it_is_alone() {
    need!(check(&SHELL), "sh or git is not installed");
}
