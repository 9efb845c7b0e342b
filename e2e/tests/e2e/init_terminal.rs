//! An app at a terminal: it reads and writes there, gets the signals of keys, is stopped and resumed by a shell's job
//! control, and gets SIGHUP when the terminal is lost. Scenarios of dumb-init and tini run against them too. Keys come in,
//! the screen and exit codes go out. Bounded by one terminal per scenario.

use crate::harness::init::Options;
use crate::harness::process::{Signal, children, descendants, is_alive, look_up};
use crate::harness::terminal::{CONTROL_C, CONTROL_D, CONTROL_Z};
use crate::harness::{
    Init, Outrigger, PATIENCE, PLAIN, SECOND, Scene, Terminal, Wait, fixture, number_after, python, until,
};

/// An init with its app on a dedicated terminal; the scene must live as long.
#[track_caller]
fn on_terminal(init: &Init, options: Options<'_>, app: &[&str]) -> Option<(Terminal, Scene)> {
    let scene = Scene::new();
    let terminal = Terminal::start(&init.command(&scene, options, app))?;
    Some((terminal, scene))
}

const NO_TERMINAL: &str = "setsid is not installed";

/// dumb-init: tty.
#[test]
fn app_reads_and_writes_at_the_terminal() {
    let scenario = |init: Init| -> Option<()> {
        let (mut terminal, _scene) = on_terminal(&init, PLAIN, &["tac"])?;
        // End of input twice: after a partial line, the first one only flushes that line (termios(3), VEOF).
        terminal.type_keys(&format!("1\n2\n3\n{CONTROL_D}{CONTROL_D}"));
        assert_eq!(terminal.wait(PATIENCE), 0, "{}", init.name());
        // The Outrigger log is on the same screen.
        let text = terminal.text();
        let lines: Vec<&str> = text.lines().filter(|line| line.len() == 1).collect();
        assert_eq!(lines, ["3", "2", "1"], "{}: {text}", init.name());
        Some(())
    };
    need!(scenario(need!(Init::dumb_init(), "dumb-init is not installed")), NO_TERMINAL);
    need!(scenario(need!(Init::tini(), "tini is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

/// dumb-init: child_gets_controlling_tty_if_we_had_one. tini: exit 0 at a terminal.
#[test]
fn shell_has_job_control_and_returns_its_code() {
    let bash = need_peer!("bash");
    let scenario = |init: Init, code: i32| -> Option<()> {
        let app = [bash.as_str(), "--norc", "--noprofile", "-i"];
        let (mut terminal, _scene) = on_terminal(&init, PLAIN, &app)?;
        terminal.await_text(PATIENCE, "$ ");
        terminal.type_keys("echo \"flags=$-.\"\n");
        terminal.await_text(PATIENCE, "flags=");
        let (_, flags) = terminal.text().split_once("flags=").map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        assert!(flags.split('.').next().is_some_and(|flags| flags.contains('m')), "{}: {flags}", init.name());
        terminal.type_keys("sleep 300 &\n");
        terminal.await_text(PATIENCE, "[1]");
        terminal.type_keys(&format!("kill %1; wait; exit {code}\n"));
        assert_eq!(terminal.wait(PATIENCE), code, "{}: {}", init.name(), terminal.text());
        assert!(!terminal.shows("no job control"), "{}: {}", init.name(), terminal.text());
        Some(())
    };
    for code in [0, 3] {
        need!(scenario(need!(Init::dumb_init(), "dumb-init is not installed"), code), NO_TERMINAL);
        need!(scenario(need!(Init::tini(), "tini is not installed"), code), NO_TERMINAL);
        need!(scenario(Init::ours(), code), NO_TERMINAL);
    }
}

const TICKING: &str = "while :; do echo tick; sleep 0.1; done";

/// tini: ^C.
#[test]
fn control_c_ends_an_app_at_a_terminal_with_130() {
    let scenario = |init: Init| -> Option<()> {
        let (mut terminal, _scene) = on_terminal(&init, PLAIN, &["sh", "-c", TICKING])?;
        terminal.await_text(PATIENCE, "tick");
        terminal.type_keys(CONTROL_C);
        assert_eq!(terminal.wait(PATIENCE), 130, "{}", init.name());
        Some(())
    };
    need!(scenario(need!(Init::dumb_init(), "dumb-init is not installed")), NO_TERMINAL);
    need!(scenario(need!(Init::tini(), "tini is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

/// The app gets the key's signal once, from the terminal, and not a second time from Outrigger; it handles it as it likes.
/// Guarantee: job-control-works
#[test]
fn control_c_reaches_the_app_once() {
    let python = need!(python(), "python3 is not installed");
    let script = "import signal,sys\ncount=0\ndef count_signal(*_):\n global count\n count+=1\n print('received',count,flush=True)\n\
               signal.signal(signal.SIGINT,count_signal)\nprint('up',flush=True)\nfor line in sys.stdin: print('count',count,flush=True); sys.exit(4)";
    let scenario = |init: Init| -> Option<()> {
        let (mut terminal, _scene) = on_terminal(&init, PLAIN, &[&python, "-c", script])?;
        terminal.await_text(PATIENCE, "up");
        terminal.type_keys(CONTROL_C);
        terminal.await_text(PATIENCE, "received 1");
        terminal.type_keys("how many?\n");
        assert_eq!(terminal.wait(PATIENCE), 4, "{}", init.name());
        assert!(terminal.shows("count 1"), "{}: {}", init.name(), terminal.text());
        Some(())
    };
    need!(scenario(need!(Init::tini(), "tini is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

/// dumb-init: sighup_sigcont_ignored_if_was_session_leader. The handover of the terminal must not reach the app as a SIGHUP.
#[test]
fn terminal_handover_sends_the_app_no_sighup() {
    let python = need!(python(), "python3 is not installed");
    let scenario = |init: Init| -> Option<()> {
        let (terminal, _scene) = on_terminal(&init, PLAIN, &[&python, &fixture("signals.py")])?;
        terminal.await_text(PATIENCE, "ready");
        let reports = || terminal.text().lines().filter(|line| line.starts_with("got ")).map(str::to_owned).collect();
        for (sent, signal) in [Signal::HUP, Signal::USR1, Signal::HUP].into_iter().enumerate() {
            terminal.signal(signal);
            let expected = &["got 1", "got 10", "got 1"][..=sent];
            until(PATIENCE, &format!("{} forwards {expected:?}", init.name()), || {
                let reports: Vec<String> = reports();
                reports.len() >= expected.len()
            });
            let reports: Vec<String> = reports();
            assert_eq!(reports, expected, "{}", init.name());
        }
        Some(())
    };
    need!(scenario(need!(Init::tini(), "tini is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

fn is_stopped(pid: u32) -> bool {
    look_up(pid).is_some_and(|process| process.state == 'T')
}

/// ^Z at a shell stops the app and the init, so that the shell shows its prompt; `fg` resumes both; ^C then ends both.
/// Guarantee: job-control-works
#[test]
fn control_z_stops_app_and_init_fg_resumes_both() {
    let bash = need_peer!("bash");
    let scenario = |init: Init| -> Option<()> {
        let scene = Scene::new();
        // bash, since it forks: dash uses vfork, and a child that ^Z stops before its exec leaves its parent in state D.
        let words: Vec<String> =
            init.command(&scene, PLAIN, &[&bash, "-c", TICKING]).iter().map(|word| format!("'{word}'")).collect();
        let terminal = Terminal::start(&[bash.as_str(), "--norc", "--noprofile", "-i"])?;
        terminal.await_text(PATIENCE, "$ ");
        terminal.type_keys(&format!("{}\n", words.join(" ")));
        terminal.await_text(PATIENCE, "tick");
        let init_pid = children(terminal.pid()).into_iter().find(|child| child.name.starts_with(init.name()))?.pid;
        let app = children(init_pid).into_iter().find(|child| child.name == "bash")?.pid;
        for round in 1..=2 {
            terminal.type_keys(CONTROL_Z);
            until(PATIENCE, &format!("{} and its app are stopped", init.name()), || {
                is_stopped(init_pid) && is_stopped(app)
            });
            until(PATIENCE, "the shell has its terminal again", || terminal.text().matches("Stopped").count() >= round);
            terminal.type_keys("fg\n");
            until(PATIENCE, "both run again", || !is_stopped(init_pid) && !is_stopped(app));
            let ticks = || terminal.text().matches("tick").count();
            let before = ticks();
            until(PATIENCE, "the app keeps running", || ticks() > before + 2);
        }
        terminal.type_keys(CONTROL_C);
        until(PATIENCE, "both have exited", || !is_alive(init_pid) && !is_alive(app));
        terminal.type_keys("echo \"code=$?.\"\n");
        terminal.await_text(PATIENCE, "code=130.");
        Some(())
    };
    need!(scenario(need!(Init::dumb_init(), "dumb-init is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

/// A background job of the shell that reads is stopped with its app, and reads once it is in the foreground.
#[test]
fn background_job_that_reads_stops_until_fg() {
    let bash = need_peer!("bash");
    let scene = Scene::new();
    let app = ["sh", "-c", "read line; echo \"line=$line.\"; exit 5"];
    let words: Vec<String> = Init::ours().command(&scene, PLAIN, &app).iter().map(|word| format!("'{word}'")).collect();
    let terminal = need!(Terminal::start(&[bash.as_str(), "--norc", "--noprofile", "-i"]), NO_TERMINAL);
    terminal.await_text(PATIENCE, "$ ");
    terminal.type_keys(&format!("{} &\n", words.join(" ")));
    let job = || children(terminal.pid()).into_iter().find(|child| child.name.starts_with("outrigger"));
    until(PATIENCE, "the job is stopped because it reads", || job().is_some_and(|child| child.state == 'T'));
    terminal.type_keys("fg\n");
    until(PATIENCE, "the job runs", || job().is_some_and(|child| child.state != 'T'));
    terminal.type_keys("input for the app\n");
    terminal.await_text(PATIENCE, "line=input for the app.");
    until(PATIENCE, "the job has exited", || job().is_none());
    terminal.type_keys("echo \"code=$?.\"\n");
    terminal.await_text(PATIENCE, "code=5.");
}

/// The terminal window is closed: the app gets SIGHUP and handles it, and no process is left.
#[test]
fn lost_terminal_sends_sighup_and_leaves_nothing() {
    let scenario = |init: Init| -> Option<()> {
        let scene = Scene::new();
        let mark = scene.text_path("mark");
        let script = format!("trap 'echo received >> {mark}; exit 3' HUP; echo up; while :; do sleep 0.05; done");
        let (mut terminal, _scene) = on_terminal(&init, PLAIN, &["sh", "-c", &script])?;
        terminal.await_text(PATIENCE, "up");
        let below = descendants(terminal.pid());
        terminal.hang_up();
        assert_eq!(terminal.wait(PATIENCE), 3, "{}", init.name());
        assert_eq!(std::fs::read_to_string(&mark).ok()?, "received\n", "{} once", init.name());
        until(5 * SECOND, "no process is left", || !below.iter().any(|pid| is_alive(*pid)));
        Some(())
    };
    need!(scenario(need!(Init::tini(), "tini is not installed")), NO_TERMINAL);
    need!(scenario(Init::ours()), NO_TERMINAL);
}

/// SIGTERM to Outrigger at a terminal stops the app gracefully, and Outrigger returns its exit code.
#[test]
fn stop_at_a_terminal_is_graceful() {
    let script = "trap 'echo leaving; exit 8' TERM; echo up; while :; do sleep 0.05; done";
    let (mut terminal, _scene) = need!(on_terminal(&Init::ours(), PLAIN, &["sh", "-c", script]), NO_TERMINAL);
    terminal.await_text(PATIENCE, "up");
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.wait(PATIENCE), 8);
    assert_eq!(terminal.text().matches("leaving").count(), 1, "{}", terminal.text());
}

const OWN_TERMINAL: &str = "app: { tty: true, stop: { drain_timeout: 1s, grace_period: 5s, timeout: 10s } }\n\
                            logs: { sources: { app: { stdio: {} } }, sinks: { none: { blackhole: {} } } }\n";

/// `tty: true`: the app has a terminal although Outrigger has none, and its output passes through as without it.
#[test]
fn tty_gives_the_app_a_terminal_without_one() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    let outrigger = Outrigger::start_and(&scene, OWN_TERMINAL, &[&python, &fixture("window.py")], Wait::Ready);
    until(PATIENCE, "all three streams of the app are terminals", || {
        outrigger.stdout.contains("terminals True True True")
    });
    until(PATIENCE, "the app leads a session and has the foreground", || {
        outrigger.stdout.contains("leads True foreground True")
    });
    let exit = outrigger.finish();
    assert_eq!(exit.code, 143, "{}", exit.stderr);
}

/// `tty: true` at a terminal: keys and the window size reach the app's own terminal.
#[test]
fn keys_and_size_reach_the_apps_own_terminal() {
    let python = need!(python(), "python3 is not installed");
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, OWN_TERMINAL));
    let (binary, config) = (crate::harness::outrigger::binary(), config.display().to_string());
    let window = fixture("window.py");
    let words = [binary.as_str(), "run", "-c", &config, "--", &python, &window];
    let mut terminal = need!(Terminal::start(&words), NO_TERMINAL);
    terminal.await_text(PATIENCE, "terminals True True True");
    until(PATIENCE, "the app's terminal has the initial size of the outer one", || terminal.shows("size=24x80"));
    for (rows, columns) in [(50, 132), (10, 40)] {
        terminal.resize(rows, columns);
        terminal.await_text(PATIENCE, &format!("size={rows}x{columns}"));
    }
    terminal.type_keys("a line\r");
    terminal.await_text(PATIENCE, "read a line");
    terminal.type_keys("quit\r");
    assert_eq!(terminal.wait(PATIENCE), 17);
}

/// `tty: true`: a ^C at the outer terminal is a ^C at the app's, and the settings of the outer one are restored.
#[test]
fn control_c_reaches_the_apps_own_terminal() {
    let bash = need_peer!("bash");
    let scene = Scene::new();
    let config = scene.write("outrigger.yaml", crate::harness::outrigger::configuration(&scene, OWN_TERMINAL));
    let binary = crate::harness::outrigger::binary();
    let terminal = need!(Terminal::start(&[bash.as_str(), "--norc", "--noprofile", "-i"]), NO_TERMINAL);
    terminal.await_text(PATIENCE, "$ ");
    let saved = scene.text_path("saved");
    terminal.type_keys(&format!("stty -g > {saved}; echo saved.\n"));
    terminal.await_text(PATIENCE, "saved.");
    terminal.type_keys(&format!("'{binary}' run -c {} -- sh -c '{TICKING}'\n", config.display()));
    terminal.await_text(PATIENCE, "tick");
    terminal.type_keys(CONTROL_C);
    let has_exited = || children(terminal.pid()).into_iter().all(|child| !child.name.starts_with("outrigger"));
    until(PATIENCE, "Outrigger has exited", has_exited);
    terminal.type_keys(&format!("echo \"code=$?.\"; stty -g | cmp - {saved} && echo unchanged.\n"));
    terminal.await_text(PATIENCE, "code=130.");
    terminal.await_text(PATIENCE, "unchanged.");
}

/// The app's process group is the terminal's foreground group while the app runs there.
#[test]
fn app_has_the_foreground_of_the_terminal() {
    let python = need!(python(), "python3 is not installed");
    let script = "import os\nprint('foreground=%d. group=%d. pid=%d.' % (os.tcgetpgrp(0), os.getpgrp(), os.getpid()), flush=True)";
    let (mut terminal, _scene) = need!(on_terminal(&Init::ours(), PLAIN, &[&python, "-c", script]), NO_TERMINAL);
    assert_eq!(terminal.wait(PATIENCE), 0);
    let text = terminal.text();
    let number = |mark: &str| number_after(&text, mark).unwrap_or_else(|| panic!("{mark} in {text}"));
    assert_eq!(number("foreground="), number("group="), "the app may read and write: {text}");
    assert_eq!(number("group="), number("pid="), "the app has its own group: {text}");
}
