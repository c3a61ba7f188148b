//! A real `redis-server` for one test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A `redis-server` that ends with its owner.
pub struct Server {
    child: Child,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    dir: TempDir,
}

impl Server {
    /// A new one, answering.
    pub async fn start(args: &[&str]) -> Server {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = TempDir::new().unwrap();
        let child = Server::spawn(port, &dir, args);
        let server = Server { child, port, dir };
        server.wait_until_it_answers().await;
        server
    }

    fn spawn(port: u16, dir: &TempDir, args: &[&str]) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path())
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is on the PATH")
    }

    async fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut tcp) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await
                && tcp.write_all(b"PING\r\n").await.is_ok()
                && tcp.read_u8().await.is_ok()
            {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Again on the same port and directory, answering.
    pub async fn restart(&mut self, args: &[&str]) {
        self.child = Server::spawn(self.port, &self.dir, args);
        self.wait_until_it_answers().await;
    }

    /// Sends a signal: `-STOP`, `-CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// A connection of the test's own.
    pub async fn connect(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(("127.0.0.1", self.port)).unwrap();
        // The library's own time-outs are too short for a busy machine.
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .unwrap()
    }

    /// One command on a connection of the test's own.
    pub async fn command(&self, words: &[&str]) {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.exec_async(&mut self.connect().await).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
