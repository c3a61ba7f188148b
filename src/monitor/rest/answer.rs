//! What the answers of a cluster's REST API mean. Pure.
//!
//! | answer about a database | means |
//! |---|---|
//! | 200 | available |
//! | 503, 500 (older builds) | unavailable, with the cluster's words |
//! | 404 | no such database: its number is not what it was |
//! | anything else | the question was not answered |

use std::net::IpAddr;

use hyper::StatusCode;
use serde::Deserialize;

use super::http::Answer;
use crate::decision::RestOutcome;
use crate::replica::Address;

/// Most characters of a cluster's own words that are passed on.
const WORDS_MAX: usize = 200;

/// What an answer to the availability question says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Said(RestOutcome),
    /// There is no database of that number; in words.
    NoSuchDatabase(String),
}

pub(super) fn availability(answer: &Answer) -> Verdict {
    let words = said(answer);
    match answer.status {
        StatusCode::OK => Verdict::Said(RestOutcome::Available),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::INTERNAL_SERVER_ERROR => {
            Verdict::Said(RestOutcome::Unavailable(words))
        }
        StatusCode::NOT_FOUND => Verdict::NoSuchDatabase(words),
        status => Verdict::Said(RestOutcome::Unknown(explained(status, words))),
    }
}

/// A status that answers no question, with what it mostly means.
fn explained(status: StatusCode, words: String) -> String {
    match status {
        StatusCode::UNAUTHORIZED => format!("{words}: the user name or password is not accepted"),
        StatusCode::FORBIDDEN => format!("{words}: the user may not ask this; it needs a viewer's role"),
        _ => words,
    }
}

/// The body of an error.
#[derive(Deserialize)]
struct Complaint {
    error_code: Option<String>,
    description: Option<String>,
}

/// The status, and what the cluster said of it.
fn said(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    let Ok(complaint) = serde_json::from_slice::<Complaint>(&answer.body) else {
        return answer.status.to_string();
    };
    match (complaint.error_code.as_deref(), complaint.description.as_deref()) {
        (Some(code), Some(why)) => format!("{status} {}: {}", plain(code), plain(why)),
        (Some(said), None) | (None, Some(said)) => format!("{status} {}", plain(said)),
        (None, None) => answer.status.to_string(),
    }
}

/// Foreign words, fit for one line of a log.
fn plain(text: &str) -> String {
    let text = text.split(char::is_control).filter(|part| !part.is_empty());
    let text = text.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A database in the cluster's list, as far as it matters here.
#[derive(Deserialize)]
struct Listed {
    uid: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    endpoints: Vec<ListedEndpoint>,
}

#[derive(Deserialize)]
struct ListedEndpoint {
    #[serde(default)]
    dns_name: Option<String>,
    #[serde(default)]
    addr: Vec<String>,
    port: Option<u16>,
}

impl ListedEndpoint {
    fn is_at(&self, host: &str, port: u16) -> bool {
        let bare = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        let is_named = self
            .dns_name
            .as_deref()
            .is_some_and(|name| bare(name) == bare(host));
        let ip = host.parse::<IpAddr>().ok();
        let is_numbered = ip.is_some() && self.addr.iter().any(|addr| addr.parse::<IpAddr>().ok() == ip);
        self.port == Some(port) && (is_named || is_numbered)
    }
}

/// The number of the one database in the cluster's list that has an endpoint at `replica`; otherwise why not.
pub(super) fn found(answer: &Answer, replica: &Address) -> Result<u64, String> {
    if answer.status != StatusCode::OK {
        let words = explained(answer.status, said(answer));
        return Err(format!("the list of databases: {words}"));
    }
    let listed: Vec<Listed> = serde_json::from_slice(&answer.body)
        .map_err(|error| format!("the list of databases is not as Redis Enterprise writes it: {error}"))?;
    let Address::Tcp { host, port } = replica else {
        return Err("a unix socket is no endpoint of a cluster; write rest.bdb".to_owned());
    };
    let here: Vec<&Listed> = listed
        .iter()
        .filter(|database| {
            database
                .endpoints
                .iter()
                .any(|endpoint| endpoint.is_at(host, *port))
        })
        .collect();
    match here[..] {
        [database] => Ok(database.uid),
        [] => Err(format!(
            "none of the cluster's {} databases has an endpoint at {replica}; write rest.bdb",
            listed.len()
        )),
        [first, second, ..] => Err(format!(
            "databases {} ({}) and {} ({}) both have an endpoint at {replica}; write rest.bdb",
            first.uid,
            plain(&first.name),
            second.uid,
            plain(&second.name)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            body: body.to_owned().into(),
        }
    }

    fn unavailable(words: &str) -> Verdict {
        Verdict::Said(RestOutcome::Unavailable(words.to_owned()))
    }

    fn unknown(words: &str) -> Verdict {
        Verdict::Said(RestOutcome::Unknown(words.to_owned()))
    }

    #[test]
    fn every_status_has_its_meaning() {
        let complaint = r#"{"error_code": "no_quorum", "description": "Master healthcheck failed"}"#;
        for (status, body, want) in [
            (200, "", Verdict::Said(RestOutcome::Available)),
            (200, "not JSON", Verdict::Said(RestOutcome::Available)),
            (
                503,
                complaint,
                unavailable("503 no_quorum: Master healthcheck failed"),
            ),
            (
                503,
                r#"{"error_code": "no_quorum"}"#,
                unavailable("503 no_quorum"),
            ),
            (503, r#"{"description": "lag"}"#, unavailable("503 lag")),
            (503, "{}", unavailable("503 Service Unavailable")),
            (503, "<html>", unavailable("503 Service Unavailable")),
            (
                503,
                r#"{"error_code": 7}"#,
                unavailable("503 Service Unavailable"),
            ),
            (500, "", unavailable("500 Internal Server Error")),
            (
                404,
                r#"{"error_code": "db_not_found"}"#,
                Verdict::NoSuchDatabase("404 db_not_found".to_owned()),
            ),
            (
                401,
                "",
                unknown("401 Unauthorized: the user name or password is not accepted"),
            ),
            (
                403,
                "",
                unknown("403 Forbidden: the user may not ask this; it needs a viewer's role"),
            ),
            (502, "", unknown("502 Bad Gateway")),
            (406, "", unknown("406 Not Acceptable")),
            (204, "", unknown("204 No Content")),
        ] {
            assert_eq!(availability(&answer(status, body)), want, "{status} {body}");
        }
    }

    #[test]
    fn foreign_words_are_one_short_line() {
        let long = "x".repeat(10_000);
        let body = format!(r#"{{"error_code": "a\nb\u001b[0m", "description": "{long}"}}"#);
        let words = said(&answer(503, &body));
        assert!(words.starts_with("503 a b [0m: xxx"), "{words}");
        assert!(words.chars().count() < WORDS_MAX + 30, "{words}");
        assert!(!words.contains(char::is_control), "{words}");
    }

    #[test]
    fn a_database_is_found_by_name_or_number() {
        let list = r#"[
            {"uid": 1, "name": "other", "endpoints": [{"dns_name": "redis-12000.c.example", "addr": ["10.0.0.1"], "port": 12001}]},
            {"uid": 2, "name": "no endpoints"},
            {"uid": 3, "name": "mine", "endpoints": [
                {"dns_name": "redis-12000.internal.c.example", "addr": ["10.0.0.1", "fd00::0:1"], "port": 12000},
                {"dns_name": "Redis-12000.C.example.", "addr": ["34.0.0.1"], "port": 12000, "addr_type": "external"}]},
            {"uid": 4, "endpoints": [{"addr": [], "port": 12000}]}
        ]"#;
        let at = |host: &str, port| {
            let host = host.to_owned();
            found(&answer(200, list), &Address::Tcp { host, port })
        };
        for host in [
            "redis-12000.c.example",
            "REDIS-12000.c.example.",
            "redis-12000.internal.c.example",
            "10.0.0.1",
            "34.0.0.1",
            "fd00::1",
        ] {
            assert_eq!(at(host, 12000), Ok(3), "{host}");
        }
        assert_eq!(at("10.0.0.1", 12001), Ok(1));
        for (host, port) in [("10.0.0.1", 12002), ("10.0.0.2", 12000), ("", 12000)] {
            let why = at(host, port).unwrap_err();
            assert!(why.starts_with("none of the cluster's 4 databases"), "{why}");
        }
        let why = found(&answer(200, list), &Address::Unix("/r".into())).unwrap_err();
        assert!(why.contains("rest.bdb"), "{why}");
    }

    #[test]
    fn a_list_that_does_not_say_is_explained() {
        let address = Address::Tcp {
            host: "10.0.0.1".to_owned(),
            port: 1,
        };
        let twice = r#"[{"uid": 1, "name": "a", "endpoints": [{"addr": ["10.0.0.1"], "port": 1}]},
                        {"uid": 2, "name": "b", "endpoints": [{"addr": ["10.0.0.1"], "port": 1}]}]"#;
        for (status, body, want) in [
            (200, "{", "not as Redis Enterprise writes it"),
            (200, "[{}]", "missing field `uid`"),
            (
                200,
                "[]",
                "none of the cluster's 0 databases has an endpoint at 10.0.0.1:1",
            ),
            (200, twice, "databases 1 (a) and 2 (b) both"),
            (401, "", "the list of databases: 401 Unauthorized: the user name"),
            (503, "", "the list of databases: 503"),
        ] {
            let why = found(&answer(status, body), &address).unwrap_err();
            assert!(why.contains(want), "{body}: {why}");
        }
    }
}
