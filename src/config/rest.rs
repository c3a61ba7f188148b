//! `rest` of a `[[replica]]`: how its cluster's REST API is asked.

use std::path::PathBuf;
use std::sync::Arc;

use super::assemble::Findings;
use super::replicas::{TlsKeys, missing, secret_in, tls};
use super::schema;
use super::url::Url;
use super::value::Value;
use crate::replica::{Address, Credentials, Database, Endpoint, Rest};

const SECTION: &str = "replica.rest";

/// Builds the check of the replica at `position`, when it has one; `replica` is the replica's own url.
pub(super) fn rest(findings: &mut Findings<'_>, position: usize, replica: Option<&Url>) -> Option<Arc<Rest>> {
    let values = findings.values;
    let section = format!("replica[{position}].rest");
    let at = |key: &str| format!("{section}.{key}");
    let there = |key: &str| values.given(&at(key)).is_some() || values.is_bad(&at(key));
    if !schema::names_in(SECTION).into_iter().any(there) {
        return None;
    }
    let url = match values.given(&at("url")).map(|given| &given.value) {
        Some(Value::Url(url)) => Some(url),
        _ => {
            missing(
                findings,
                position,
                "rest.url",
                "write e.g. url = \"https://HOST:9443\"",
            );
            None
        }
    };
    if url.is_some_and(|url| !url.tls) {
        findings.warning(
            &at("url"),
            "the password crosses the network unencrypted; use https:// where the cluster offers it",
        );
    }
    // Looked at even when the URL is unusable, so that their problems come out at once.
    let tls = tls(
        findings,
        TlsKeys {
            section: &section,
            keys: &["ca", "server_name", "insecure_skip_verify"],
            scheme: "https",
            is_used: url.is_none_or(|url| url.tls),
        },
    );
    let credentials = credentials(findings, position);
    let database = match values.given_number(&at("bdb")) {
        Some(uid) => Database::Uid(uid),
        None => Database::Auto,
    };
    let is_unix = replica.is_some_and(|url| matches!(url.address, Address::Unix(_)));
    if is_unix && database == Database::Auto && !values.is_bad(&at("bdb")) {
        findings.problem(
            &at("bdb"),
            "auto looks for the replica's host and port, which a unix socket has not; write the database's number",
        );
    }
    Some(Arc::new(Rest {
        endpoint: Arc::new(Endpoint {
            address: url?.address.clone(),
            tls,
            credentials: Some(credentials?),
        }),
        database,
        local: values.switch(&at("local")),
        lag_tolerance: values.duration(&at("lag_tolerance")),
        interval: values.duration(&at("interval")),
    }))
}

/// Needed: the API answers nobody without.
fn credentials(findings: &mut Findings<'_>, position: usize) -> Option<Credentials> {
    let values = findings.values;
    let at = |key: &str| format!("replica[{position}].rest.{key}");
    let username = match values.text(&at("username")) {
        Some(name) if name.is_empty() || name.contains(':') => {
            findings.problem(
                &at("username"),
                "a user name of HTTP is not empty and has no colon",
            );
            None
        }
        Some(name) => Some(name.to_owned()),
        None => {
            let example = "write e.g. username = \"pulsegate@example.com\"";
            missing(findings, position, "rest.username", example);
            None
        }
    };
    let password = match values.text(&at("password_file")).map(PathBuf::from) {
        Some(path) => secret_in(findings, &at("password_file"), &path),
        None => {
            let example = "name the file that holds the password, on one line";
            missing(findings, position, "rest.password_file", example);
            None
        }
    };
    Some(Credentials {
        username: Some(username?),
        password: password?,
    })
}
