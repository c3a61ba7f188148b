//! `make demo`, in its short form: it ends well, says what it promises to say, and leaves nothing behind; and its
//! verdict finds every promise that breaks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#[path = "support/python.rs"]
mod python;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(30);

fn demo(args: &[&str]) -> Command {
    let programs = Path::new(env!("CARGO_BIN_EXE_pulsegate")).parent().unwrap();
    assert!(
        programs.join("rig").is_file(),
        "the rig's program is not built: `make build`, or test with --workspace"
    );
    let mut command = python::run("tests/demo/demo.py");
    command.arg("--short").arg("--programs").arg(programs).args(args);
    command
}

#[expect(
    clippy::disallowed_methods,
    reason = "a deadline, and a pause between two looks at the condition"
)]
fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Neither gone nor a zombie.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Its children, and theirs.
fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    // The rig starts its servers on another thread than its first.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map(|tasks| {
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
            .collect::<String>()
    });
    let all = tasks.unwrap_or(children);
    let direct = all.split_whitespace().filter_map(|pid| pid.parse().ok());
    direct
        .flat_map(|child| [vec![child], descendants(child)].concat())
        .collect()
}

fn signal(name: &str, pids: &[&str]) {
    assert!(
        Command::new("kill")
            .arg(name)
            .args(pids)
            .status()
            .unwrap()
            .success(),
        "kill {name} {pids:?}"
    );
}

/// Ends what a failed test would leave.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether somebody listens at the address that the text gives for `who`.
fn reached(text: &str, who: &str) -> bool {
    let line = text.lines().find(|line| line.trim_start().starts_with(who));
    let address = line.and_then(|line| line.split_once("redis://")?.1.split_whitespace().next());
    address.is_some_and(|address| std::net::TcpStream::connect(address).is_ok())
}

#[test]
fn it_keeps_its_promises_and_leaves_all_running_when_asked() {
    let out = demo(&["--keep"]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&out.stderr);
    let stop = text.lines().find_map(|line| line.trim().strip_prefix("stop:"));
    let stop = stop.unwrap_or_else(|| panic!("it does not say how to stop: {text}\n{errors}"));
    let (pids, folder) = stop
        .trim()
        .trim_start_matches("kill ")
        .split_once(" && rm -r ")
        .unwrap();
    let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    // Looked at before, judged after its own word has ended it all: a test that fails leaves nothing either.
    let running: Vec<bool> = pids.iter().map(|&pid| is_alive(pid)).collect();
    let reached = ["applications", "local", "remote", "third"].map(|who| (who, reached(&text, who)));
    let servers: Vec<u32> = pids.iter().flat_map(|&pid| descendants(pid)).collect();
    let stopped = Command::new("sh").args(["-c", stop]).status().unwrap();

    assert!(stopped.success(), "{stop}: {stopped}");
    assert!(out.status.success(), "{}: {text}\n{errors}", out.status);
    assert!(
        running.iter().all(|&running| running),
        "left running: {pids:?} {running:?}"
    );
    assert!(reached.iter().all(|&(_, reached)| reached), "{reached:?}");
    assert_eq!(servers.len(), 3, "three servers: {servers:?}");
    wait("its word to stop ends everything", || {
        !pids.iter().chain(&servers).any(|&pid| is_alive(pid))
    });
    assert!(!Path::new(folder).exists(), "{folder}");

    for label in [
        "SIGKILL of the replica local",
        "is active (refused)",
        "local is active (failback)",
        "connections closed           0\n",
        "detection",
        "switch",
        "longest gap of a client",
        "errors seen by clients",
        "writes of unknown outcome",
        "applied twice                none of",
        "acknowledged, then lost",
        "messages heard",
        "Every promise held.",
    ] {
        assert!(text.contains(label), "the summary lacks {label:?}");
    }
}

#[test]
fn ctrl_c_ends_all_that_it_started() {
    let mut command = demo(&[]);
    let mut demo = Guard(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let steady = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("steady:"));
    assert!(steady.is_some(), "it begins");
    let pid = demo.0.id();
    let started = descendants(pid);
    assert!(
        started.len() >= 5,
        "pulsegate, the rig and three servers: {started:?}"
    );
    signal("-INT", &[&pid.to_string()]);
    let status = demo.0.wait().unwrap();
    assert_eq!(status.code(), Some(130), "as a shell has it for Ctrl-C");
    wait("everything ends with it", || {
        !started.iter().any(|&pid| is_alive(pid))
    });
}

#[test]
fn without_its_programs_it_says_how_to_build_them() {
    let mut command = python::run("tests/demo/demo.py");
    let out = command.args(["--programs", "/nowhere"]).output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        errors.contains("/nowhere/rig") && errors.contains("make build"),
        "{errors}"
    );
}

#[test]
fn the_verdict_finds_each_broken_promise() {
    let mut command = python::run("-m");
    let out = command
        .args(["unittest", "discover", "-s", "tests/demo"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{told}");
    assert!(!told.contains("Ran 0 tests"), "{told}");
}
