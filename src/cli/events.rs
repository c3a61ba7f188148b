//! `pulsegate events`: the admin server's event stream, one line each.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use tokio::time::timeout;

use super::client::{AdminClient, QUICK};
use super::{AdminArgs, Failure, print, status};
use crate::control::status::EventRecord;

/// Without `--follow`: longest gap in the list of events that the server has kept.
const GAP: Duration = Duration::from_secs(5);
/// Longest line that a stream of events may have.
const LINE_MAX: usize = 1 << 20;

/// Prints the events that the server has kept or, when `follow`, the last few and all that come, until it goes away.
pub(super) async fn events(args: &AdminArgs, follow: bool, json: bool) -> Result<(), Failure> {
    let client = AdminClient::new(args)?;
    let path = if follow {
        "/events?recent=10"
    } else {
        "/events?follow=false"
    };
    let Ok(response) = timeout(QUICK, client.open(Method::GET, path, None)).await else {
        return Err(client.unavailable(&format!("no answer within {} s", QUICK.as_secs())));
    };
    let response = response?;
    if response.status() != StatusCode::OK {
        return Err(client.unavailable(&format!("/events answered {}", response.status())));
    }
    let mut body = response.into_body();
    let mut lines = DataLines::default();
    loop {
        let chunk = match follow {
            true => next(&mut body).await,
            false => match timeout(GAP, next(&mut body)).await {
                Ok(chunk) => chunk,
                Err(_) => {
                    let waited = GAP.as_secs();
                    return Err(
                        client.unavailable(&format!("the list of events has no end within {waited} s"))
                    );
                }
            },
        };
        match chunk {
            None if follow => return Err(client.unavailable("the stream of events ended")),
            None => return Ok(()),
            Some(Err(error)) => return Err(client.unavailable(&format!("the stream broke off: {error}"))),
            Some(Ok(bytes)) => lines.push(&bytes),
        }
        while let Some(data) = lines.pop() {
            match line(&data, json) {
                Some(text) => print(&text)?,
                None => return Err(client.unavailable("an event is not as Pulsegate writes it")),
            }
        }
        if lines.pending.len() > LINE_MAX {
            return Err(client.unavailable("an event without an end"));
        }
    }
}

async fn next(body: &mut Incoming) -> Option<Result<bytes::Bytes, hyper::Error>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

fn line(data: &str, json: bool) -> Option<String> {
    let event: EventRecord = serde_json::from_str(data).ok()?;
    if json {
        return Some(data.to_owned());
    }
    let at = status::clock(event.at);
    Some(format!("{at}  {:<9} {}", event.kind, event.message))
}

/// The `data:` lines of a stream of server-sent events, whose pieces may be cut anywhere.
/// Other fields and comments are passed over. Source: the HTML standard, section 9.2.6.
#[derive(Default)]
struct DataLines {
    pending: Vec<u8>,
}

impl DataLines {
    fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    fn pop(&mut self) -> Option<String> {
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if let Some(data) = line.strip_prefix("data:") {
                return Some(data.strip_prefix(' ').unwrap_or(data).to_owned());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lines_come_out_whole_however_the_stream_is_cut() {
        let stream = b": keep-alive\n\nid: 1\nevent: health\ndata: {\"a\":1}\n\ndata:{\"b\":2}\r\n\r\n";
        for size in 1..=stream.len() {
            let mut lines = DataLines::default();
            let mut out = Vec::new();
            for piece in stream.chunks(size) {
                lines.push(piece);
                while let Some(data) = lines.pop() {
                    out.push(data);
                }
            }
            assert_eq!(out, ["{\"a\":1}", "{\"b\":2}"], "pieces of {size}");
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let data = r#"{"id":7,"at":1700000000123,"kind":"switch","message":"local → remote","details":{}}"#;
        let want = "2023-11-14T22:13:20.123Z  switch    local → remote";
        assert_eq!(line(data, false).as_deref(), Some(want));
        assert_eq!(line(data, true).as_deref(), Some(data));
        assert_eq!(line("{}", true), None);
    }
}
