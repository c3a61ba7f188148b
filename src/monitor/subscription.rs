//! A connection that listens: commands out, one frame after the other in.
//!
//! RESP2, which every server speaks; the library's own listener knows no sharded channels there. Frames are found by
//! `resp`'s scanner, so that nothing is read twice, and are bounded in size: whoever sends more is no server of ours.

use redis::{Cmd, RedisError, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Pace;
use super::connect::{self, Failure};
use crate::dial::{Dialer, Stream};
use crate::resp::{ReplyScan, ReplyScanner};

/// Longest frame. Our own messages have about a hundred bytes; what others publish on our channels may be longer.
const LONGEST: usize = 64 * 1024;

/// What comes in.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Frame {
    Message {
        channel: Vec<u8>,
        payload: Vec<u8>,
    },
    /// A confirmation: which command's (`subscribe`, `ssubscribe`, `unsubscribe`, …), for which channel.
    Confirmed {
        what: Vec<u8>,
        channel: Vec<u8>,
    },
    /// The answer to any other command.
    Answer,
}

pub(super) struct Subscription {
    stream: Stream,
    received: Vec<u8>,
    scanner: ReplyScanner,
}

impl Subscription {
    /// Dials, and authenticates when the endpoint has credentials.
    pub(super) async fn open(dialer: &Dialer, pace: Pace) -> Result<Subscription, Failure> {
        let mut subscription = Subscription {
            stream: connect::stream(dialer, pace).await?,
            received: Vec::new(),
            scanner: ReplyScanner::new(),
        };
        if let Some(auth) = connect::auth(dialer) {
            let answered = async {
                subscription.send(&auth.get_packed_command()).await?;
                subscription.next().await
            };
            match tokio::time::timeout(pace.answer_timeout, answered).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Failure::timeout("AUTH", pace.answer_timeout)),
            };
        }
        Ok(subscription)
    }

    /// Writes all of `commands`, which are packed.
    pub(super) async fn send(&mut self, commands: &[u8]) -> Result<(), Failure> {
        let written = self.stream.write_all(commands).await;
        written.map_err(|error| Failure::from(&RedisError::from(error)))?;
        let flushed = self.stream.flush().await;
        flushed.map_err(|error| Failure::from(&RedisError::from(error)))
    }

    /// The next frame. An error answer is a failure that leaves the connection usable. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            match self.scanner.scan(&self.received) {
                Ok(ReplyScan::Complete(reply)) => {
                    let value = redis::parse_redis_value(&self.received[..reply.len]);
                    self.received.drain(..reply.len);
                    return match value.and_then(Value::extract_error) {
                        Ok(value) => Ok(frame(value)),
                        Err(error) => Err(Failure::from(&error)),
                    };
                }
                Ok(ReplyScan::Incomplete { .. }) if self.received.len() >= LONGEST => {
                    return Err(Failure::no_redis(format!("a frame of more than {LONGEST} bytes")));
                }
                Ok(ReplyScan::Incomplete { .. }) => {}
                Err(error) => return Err(Failure::no_redis(error.to_string())),
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) => return Err(Failure::closed()),
                Ok(_) => {}
                Err(error) => return Err(Failure::from(&RedisError::from(error))),
            }
        }
    }
}

/// `command` for one channel.
pub(super) fn about(command: &str, channel: &str) -> Vec<u8> {
    Cmd::new().arg(command).arg(channel).get_packed_command()
}

fn frame(value: Value) -> Frame {
    let Value::Array(parts) = value else {
        return Frame::Answer;
    };
    match <[Value; 3]>::try_from(parts) {
        Ok([Value::BulkString(what), Value::BulkString(channel), third]) => match (&what[..], third) {
            (b"message" | b"smessage", Value::BulkString(payload)) => Frame::Message { channel, payload },
            (_, Value::Int(_)) => Frame::Confirmed { what, channel },
            _ => Frame::Answer,
        },
        _ => Frame::Answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Frame {
        frame(redis::parse_redis_value(bytes).unwrap())
    }

    #[test]
    fn frames_are_told_apart() {
        let message = |channel: &[u8], payload: &[u8]| Frame::Message {
            channel: channel.to_vec(),
            payload: payload.to_vec(),
        };
        assert_eq!(
            read(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"),
            message(b"c", b"hi")
        );
        assert_eq!(
            read(b"*3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n"),
            message(b"c", b"hi")
        );
        let confirmed = Frame::Confirmed {
            what: b"ssubscribe".to_vec(),
            channel: b"c".to_vec(),
        };
        assert_eq!(read(b"*3\r\n$10\r\nssubscribe\r\n$1\r\nc\r\n:1\r\n"), confirmed);
        for answer in [
            &b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"[..],
            b"+PONG\r\n",
            b"*0\r\n",
            b"*3\r\n:1\r\n:2\r\n:3\r\n",
        ] {
            assert_eq!(read(answer), Frame::Answer);
        }
    }
}
