//! A real server for the tests of `resp`: on a unix socket in a directory of its own, gone when dropped.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a server may take to start, and a test may wait for one answer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A running server.
pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts `program`, without persistence, with further `options`.
    pub(crate) fn start(program: &Path, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command
            .args([
                "--unixsocket",
                "redis.sock",
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
            ])
            .args(["--logfile", "", "--loglevel", "notice"])
            .args(options)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if !options.contains(&"--port") {
            command.args(["--port", "0"]);
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", program.display()));
        let log = BufReader::new(child.stdout.take().unwrap());
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            // Reads on after that, or the server would stall on a full pipe.
            for line in log.lines().map_while(Result::ok) {
                let _ = ready.send(line);
            }
        });
        let server = Self { child, dir };
        let mut seen = String::new();
        loop {
            match is_ready.recv_timeout(DEADLINE) {
                Ok(line) if line.contains("eady to accept connections") => return server,
                Ok(line) => seen += &format!("{line}\n"),
                Err(e) => panic!("{} is not ready: {e}\n{seen}", program.display()),
            }
        }
    }

    /// The Redis of this machine.
    pub(crate) fn redis() -> Self {
        Self::start(Path::new("redis-server"), &[])
    }

    /// Sends a signal: `-STOP`, `-CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Its unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
