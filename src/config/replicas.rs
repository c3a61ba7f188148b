//! `[[replica]]`: names, addresses, TLS and credentials, each and together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::assemble::{Findings, said_of_given};
use super::env::MOST_REPLICAS;
use super::flags::is_name;
use super::problem::Problem;
use super::rest;
use super::url::Url;
use super::value::{self, Value};
use crate::replica::{
    Address, AddressPair, Credentials, Endpoint, Replica, ReplicaId, Secret, Tls, Topology, TopologyKind,
};

/// Weight of the first replica without one; each later one has one less, so that the order is the preference.
const FIRST_WEIGHT: u32 = 100;

/// Longest password or token file that is read, in bytes.
const SECRET_MAX: u64 = 64 * 1024;

/// Builds the replicas, as far as they are right.
pub(super) fn replicas(findings: &mut Findings<'_>) -> Vec<Replica> {
    let count = findings.values.replicas.len();
    if count == 0 && !findings.values.is_bad("replica") {
        findings.problem(
            "replica",
            "at least one is needed; write [[replica]] with name and url, or use --replica NAME=URL",
        );
    }
    if count > MOST_REPLICAS {
        findings.problem(
            "replica",
            format!("{count} replicas; at most {MOST_REPLICAS} are possible"),
        );
    }
    let count = count.min(MOST_REPLICAS);
    let replicas: Vec<Replica> = (0..count)
        .filter_map(|position| replica(findings, position))
        .collect();
    twice(findings, count);
    if count == 1 && replicas.len() == 1 {
        let text = "the only replica: there is nothing to fail over to";
        findings.warning("replica[0].url", text);
    }
    replicas
}

fn replica(findings: &mut Findings<'_>, position: usize) -> Option<Replica> {
    let values = findings.values;
    let at = |key: &str| format!("replica[{position}].{key}");
    let name = match values.text(&at("name")) {
        Some(name) if is_name(name) => Some(name.to_owned()),
        Some(_) => {
            findings.problem(
                &at("name"),
                "1 to 63 letters, digits, or . _ -, beginning with a letter or a digit",
            );
            None
        }
        None => {
            missing(findings, position, "name", "write e.g. name = \"local\"");
            None
        }
    };
    let url = match values.given(&at("url")).map(|given| &given.value) {
        Some(Value::Url(url)) => Some(url),
        _ => {
            missing(
                findings,
                position,
                "url",
                "write e.g. url = \"redis://127.0.0.1:6380\"",
            );
            None
        }
    };
    // Looked at even when the URL is unusable, so that their problems come out at once.
    let tls = tls(
        findings,
        TlsKeys {
            section: &at("tls"),
            keys: &["ca", "cert", "key", "server_name", "insecure_skip_verify"],
            scheme: "rediss",
            is_used: url.is_none_or(|url| url.tls),
        },
    );
    let credentials = credentials(findings, position, url);
    let rest = rest::rest(findings, position, url);
    let topology = topology(findings, position, url);
    let weight = match values.given_number(&at("weight")) {
        Some(weight) => u32::try_from(weight).unwrap_or(u32::MAX),
        None => FIRST_WEIGHT - u32::try_from(position).unwrap_or(0),
    };
    Some(Replica {
        id: ReplicaId(u8::try_from(position).ok()?),
        name: Arc::from(name?),
        weight,
        topology,
        endpoint: Arc::new(Endpoint {
            address: url?.address.clone(),
            tls,
            credentials,
        }),
        rest,
    })
}

/// Says that `key` of the replica at `position` is missing, unless something is wrong with it already.
pub(super) fn missing(findings: &mut Findings<'_>, position: usize, key: &str, example: &str) {
    let path = format!("replica[{position}].{key}");
    if findings.values.is_bad(&path) {
        return;
    }
    findings.problems.push(Problem {
        origin: findings.values.replicas[position].clone(),
        subject: path,
        text: format!("missing; {example}"),
    });
}

/// Checks every replica against those before it, whatever else is wrong with them.
fn twice(findings: &mut Findings<'_>, count: usize) {
    let values = findings.values;
    let at = |position: usize, key: &str| format!("replica[{position}].{key}");
    let name = |position: usize| values.text(&at(position, "name"));
    let address = |position: usize| match values.given(&at(position, "url")).map(|given| &given.value) {
        Some(Value::Url(url)) => Some(&url.address),
        _ => None,
    };
    for position in 0..count {
        let same_name =
            (0..position).find(|first| name(position).is_some() && name(*first) == name(position));
        if let Some(first) = same_name {
            let text = format!("the name of replica[{first}] too; names tell replicas apart");
            findings.problem(&at(position, "name"), text);
        }
        let same_address =
            (0..position).find(|first| address(position).is_some() && address(*first) == address(position));
        if let Some(first) = same_address {
            let text = format!("the address of replica[{first}] too; each replica is a database of its own");
            findings.problem(&at(position, "url"), text);
        }
    }
}

/// The TLS keys of one endpoint.
#[derive(Clone, Copy)]
pub(super) struct TlsKeys<'a> {
    /// Where they stand.
    pub(super) section: &'a str,
    pub(super) keys: &'a [&'a str],
    /// The scheme of a url that uses them.
    pub(super) scheme: &'a str,
    /// The url has that scheme, or is not known.
    pub(super) is_used: bool,
}

/// How TLS is done, when it is used.
pub(super) fn tls(findings: &mut Findings<'_>, given: TlsKeys<'_>) -> Option<Tls> {
    let values = findings.values;
    let TlsKeys {
        section,
        keys,
        scheme,
        is_used,
    } = given;
    let at = |key: &str| format!("{section}.{key}");
    for key in keys {
        if !is_used && values.given(&at(key)).is_some() {
            let text = format!("TLS is used only with a {scheme}:// url; change the url, or remove this key");
            findings.problem(&at(key), text);
        }
    }
    let there = |key: &str| values.given(&at(key)).is_some() || values.is_bad(&at(key));
    for (key, other) in [("cert", "key"), ("key", "cert")] {
        if there(key) && !there(other) {
            findings.problem(&at(key), format!("needs {other} beside it"));
        }
    }
    let insecure = values.switch(&at("insecure_skip_verify"));
    if insecure && is_used {
        findings.warning(
            &at("insecure_skip_verify"),
            "any certificate is accepted, so the connection is open to interception",
        );
        if values.given(&at("ca")).is_some() {
            findings.problem(
                &at("ca"),
                "has no use while insecure_skip_verify accepts any certificate; remove one of the two",
            );
        }
    }
    if let Some(name) = values.text(&at("server_name"))
        && !is_server_name(name)
    {
        findings.problem(&at("server_name"), "neither a host name nor an IP address");
    }
    let path = |key: &str| values.text(&at(key)).map(PathBuf::from);
    is_used.then(|| Tls {
        ca: path("ca"),
        cert: path("cert"),
        key: path("key"),
        server_name: values.text(&at("server_name")).map(str::to_owned),
        insecure_skip_verify: insecure,
    })
}

fn topology(findings: &mut Findings<'_>, position: usize, url: Option<&Url>) -> Topology {
    let values = findings.values;
    let at = |key: &str| format!("replica[{position}].{key}");
    let kind = match values.word(&at("topology")).as_str() {
        "single" => TopologyKind::Single,
        "cluster" => TopologyKind::Cluster,
        _ => TopologyKind::Auto,
    };
    let is_unix = url.is_some_and(|url| matches!(url.address, Address::Unix(_)));
    if kind == TopologyKind::Cluster && is_unix {
        findings.problem(
            &at("topology"),
            "the nodes of a cluster are reached over TCP; give the url of one of them",
        );
    }
    let shards = values.number(&at("shards"));
    if kind == TopologyKind::Cluster && shards > 0 {
        findings.problem(
            &at("shards"),
            "a cluster says itself which shards it has; remove this key, or set topology = \"single\"",
        );
    }
    let list = at("address_map");
    let mut address_map: Vec<AddressPair> = Vec::new();
    for given in values.list(&list) {
        let Value::AddressPair(pair) = &given.value else {
            continue;
        };
        if kind == TopologyKind::Single {
            let text = "has no use with topology = \"single\": only the url's own address is connected to";
            said_of_given(findings, given, text);
        } else if address_map.iter().any(|known| known.announced == pair.announced) {
            said_of_given(findings, given, "the same announced address twice");
        }
        address_map.push(pair.clone());
    }
    Topology {
        kind,
        address_map,
        shards: u16::try_from(shards).ok().filter(|shards| *shards > 0),
    }
}

fn is_server_name(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
        || (!text.is_empty()
            && text.len() <= 253
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')))
}

fn credentials(findings: &mut Findings<'_>, position: usize, url: Option<&Url>) -> Option<Credentials> {
    let values = findings.values;
    let at = |key: &str| format!("replica[{position}].{key}");
    let in_url = |part: fn(&Url) -> bool| url.is_some_and(part);
    let file = values.text(&at("password_file")).map(PathBuf::from);
    let password = file.and_then(|path| secret_in(findings, &at("password_file"), &path));
    if values.given(&at("password_file")).is_some() && in_url(|url| url.password.is_some()) {
        findings.problem(
            &at("password_file"),
            "the url has a password too; remove one of the two",
        );
    }
    let username = values.text(&at("username"));
    if username == Some("") {
        findings.problem(&at("username"), "empty; remove it for the default user");
    }
    if username.is_some() && in_url(|url| url.username.is_some()) {
        findings.problem(
            &at("username"),
            "the url has a user name too; remove one of the two",
        );
    }
    let has_password = values.given(&at("password_file")).is_some()
        || values.is_bad(&at("password_file"))
        || in_url(|url| url.password.is_some());
    let named = match username {
        Some(_) => Some(at("username")),
        None if in_url(|url| url.username.is_some()) => Some(at("url")),
        None => None,
    };
    if let Some(named) = named
        && !has_password
        && url.is_some()
    {
        findings.problem(&named, "a user name without a password; set password_file");
    }
    let password = password.or_else(|| url?.password.clone())?;
    Some(Credentials {
        username: username
            .map(str::to_owned)
            .or_else(|| url.and_then(|url| url.username.clone())),
        password,
    })
}

/// The secret that the file at `path` holds: its text without the line's end.
pub(super) fn secret_in(findings: &mut Findings<'_>, key: &str, path: &Path) -> Option<Secret> {
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length > SECRET_MAX {
        findings.problem(key, "larger than 64 KiB: not a file with one secret");
        return None;
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            findings.problem(key, "its contents are not UTF-8");
            return None;
        }
        Err(error) => {
            findings.problem(key, format!("cannot be read: {}", value::words_of(&error)));
            return None;
        }
    };
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        findings.problem(key, "the file is empty");
        return None;
    }
    if secret.contains(['\r', '\n']) {
        findings.problem(key, "the file has more than one line");
        return None;
    }
    Some(Secret::new(secret))
}
