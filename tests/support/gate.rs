//! The real binary in front of real servers, for tests that need no more of it than its address.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running Pulsegate that ends with its owner.
pub(crate) struct Gate {
    child: Child,
    /// Where applications connect.
    pub(crate) addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Gate {
    /// Starts it in front of one replica, of which `replica` says the keys; `toml` has further tables.
    pub(crate) fn start(replica: &str, toml: &str) -> Gate {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("pulsegate.toml");
        let text = format!(
            "{toml}\n[listener]\nbind = [\"127.0.0.1:0\"]\n[admin]\nbind = \"127.0.0.1:0\"\n\
             [log]\nformat = \"json\"\nlevel = \"info\"\n[[replica]]\nname = \"only\"\n{replica}\n"
        );
        std::fs::write(&config, text).expect("the configuration is written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_pulsegate"))
            .args(["run", "--config"])
            .arg(&config)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let (found, address) = mpsc::channel();
        let stderr = child.stderr.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let json: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if json["message"] == "listening for applications" {
                    let _ = found.send(json["address"].as_str().and_then(|a| a.parse().ok()));
                }
                // A failed test shows what it said.
                if json["level"] != "INFO" {
                    println!("pulsegate: {line}");
                }
            }
        });
        let addr = address.recv_timeout(PATIENCE).ok().flatten();
        Gate {
            child,
            addr: addr.expect("pulsegate says where it listens"),
            _dir: dir,
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
