//! The apps of `apps.rs` with Outrigger as a companion: the test starts the app separately, and Outrigger shares its network,
//! its directory and its process ids. Lines of its log file, its metrics, configuration and requests pass through Outrigger;
//! the app shows the same as alone. Bounded as there.

use crate::apps::{App, Mode, assert_both_in_the_ledger, assert_received};
use crate::apps_table::{JAVA, Kind, NGINX, NODE, PYTHON, REDIS, SHELL};
use crate::harness::git::published;
use crate::harness::process::Signal;
use crate::harness::{LogReceiver, Outrigger, PATIENCE, SECOND, Wait, ledger_balances, until};

/// Both runs, and all data of the second at its receivers. `None` if something is not installed.
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
    let (mut running, outrigger) = match app.starts_first() {
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
    assert_both_in_the_ledger(&outrigger);
    ledger_balances(&outrigger.admin);
    // As at the end of a Pod: both get SIGTERM simultaneously, and Outrigger outlives the app.
    outrigger.signal(Signal::TERM);
    running.signal(Signal::TERM);
    let code = running.wait(PATIENCE);
    let exit = outrigger.wait(40 * SECOND);
    assert_eq!(exit.code, 0, "the app's code is not Outrigger's: {}", exit.stderr);
    assert!(exit.took < 20 * SECOND, "it exits before its deadline: {:?}", exit.took);
    let shown = app.shown(code, &running.stdout.text(), &running.stderr.text());
    shown.assert_same_as(&expected, kind);
    assert_received("its file at the receiver", &receiver.messages(), &shown.file, &exit.stderr);
    app.assert_saved();
    receiver.assert_well_formed();
    Some(())
}

/// It gets no signal from Outrigger and needs none: it serves the new revision from the directory immediately.
#[test]
fn nginx_behaves_the_same_with_companion() {
    need!(check(&NGINX), "nginx or git is not installed");
}

#[test]
fn python_app_behaves_the_same_with_companion() {
    need!(check(&PYTHON), "python3 or git is not installed");
}

#[test]
fn node_server_behaves_the_same_with_companion() {
    need!(check(&NODE), "node or git is not installed");
}

#[test]
fn java_server_behaves_the_same_with_companion() {
    need!(check(&JAVA), "java or git is not installed");
}

/// Its log is a file here, and it reads its users from the directory.
#[test]
fn redis_behaves_the_same_with_companion() {
    need!(check(&REDIS), "redis-server or git is not installed");
}

#[test]
fn shell_script_behaves_the_same_with_companion() {
    need!(check(&SHELL), "sh or git is not installed");
}
