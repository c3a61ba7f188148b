//! One value: from what was written to what it means, or to words about what would be right.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Bind;
use super::problem::nearest;
use super::schema::Kind;
use super::tree::Raw;
use super::url::{self, SUN_PATH_MAX, Url};
use crate::replica::AddressPair;

/// What a key of a kind means. Lists of addresses are read item by item, as [`Value::Bind`]s.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Duration(Duration),
    Number(u64),
    Switch(bool),
    Bind(Bind),
    Address(SocketAddr),
    AddressPair(AddressPair),
    Url(Url),
    Steps(Vec<u8>),
}

const DURATION: &str = r#"write e.g. "250ms", "3s", "1m""#;
const SIZE: &str = r#"write e.g. "512KiB", "64MiB" or a number of bytes"#;
const BIND: &str = r#"write e.g. "127.0.0.1:6379", "[::1]:6379" or "unix:/run/pulsegate/redis.sock""#;

/// Reads `raw` as `kind`; the error says what would be right.
pub(super) fn read(kind: Kind, raw: &Raw) -> Result<Value, String> {
    match kind {
        Kind::Text => text(raw).map(|text| Value::Text(text.to_owned())),
        Kind::File => readable_file(text(raw)?).map(Value::Text),
        Kind::NewFile => new_file(text(raw)?).map(Value::Text),
        Kind::Binds => bind(text(raw)?).map(Value::Bind),
        Kind::AddressPairs => pair(text(raw)?).map(Value::AddressPair),
        Kind::Address => address(text(raw)?)
            .map_err(|why| format!(r#"{why}; write e.g. "127.0.0.1:9379""#))
            .map(Value::Address),
        Kind::Url => url::parse(text(raw)?).map(Value::Url),
        Kind::HttpUrl => url::parse_http(text(raw)?).map(Value::Url),
        Kind::Duration(from, to) => duration(raw, from, to).map(Value::Duration),
        Kind::Size(from, to) => size(raw, from, to).map(Value::Number),
        Kind::Count(from, to) => count(raw, from, to).map(Value::Number),
        Kind::Steps => steps(raw).map(Value::Steps),
        Kind::AutoOr(from, to) => match raw {
            Raw::Text(text) if text == AUTO => Ok(Value::Text(AUTO.to_owned())),
            Raw::Integer(..) => count(raw, from, to).map(Value::Number),
            _ => Err(format!("write \"{AUTO}\" or a whole number from {from} to {to}")),
        },
        Kind::Switch => match raw {
            Raw::Bool(value) => Ok(Value::Switch(*value)),
            _ => Err("write true or false".to_owned()),
        },
        Kind::OneOf(words) => word(raw, words).map(Value::Text),
        Kind::Filter => filter(text(raw)?).map(Value::Text),
        Kind::NotBuilt => Err(NOT_BUILT.to_owned()),
    }
}

/// The word of [`Kind::AutoOr`].
const AUTO: &str = "auto";

/// The answer to a key whose part does not exist yet.
pub(super) const NOT_BUILT: &str = "not built yet in this version";

fn text(raw: &Raw) -> Result<&str, String> {
    match raw {
        Raw::Text(text) => Ok(text),
        other => Err(format!("{} where a string is needed", other.noun())),
    }
}

fn duration(raw: &Raw, from: u64, to: u64) -> Result<Duration, String> {
    let text = match raw {
        Raw::Text(text) => text.trim(),
        Raw::Integer(..) | Raw::Float(_) => return Err(format!("a duration needs a unit; {DURATION}")),
        other => return Err(format!("{} where a duration is needed; {DURATION}", other.noun())),
    };
    if text != "0" && !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(format!("a duration needs a unit; {DURATION}"));
    }
    let value = humantime::parse_duration(text).map_err(|_| format!("not a duration; {DURATION}"))?;
    let (least, most) = (Duration::from_millis(from), Duration::from_millis(to));
    if value < least || value > most {
        let most = humantime::format_duration(most);
        return Err(if from == 0 {
            format!("must be at most {most}")
        } else {
            format!("must be from {} to {most}", humantime::format_duration(least))
        });
    }
    Ok(value)
}

/// Percentages that grow up to 100.
fn steps(raw: &Raw) -> Result<Vec<u8>, String> {
    const STEPS: &str = "write percentages that grow and end with 100, e.g. [10, 50, 100]";
    let numbers: Option<Vec<u64>> = match raw {
        Raw::Text(text) => {
            let items = text
                .trim()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .split(',');
            items.map(|item| item.trim().parse().ok()).collect()
        }
        Raw::Integer(..) => integer(raw).map(|number| vec![number]),
        Raw::List(items) => items.iter().map(|item| integer(&item.raw)).collect(),
        other => return Err(format!("{} where a list is needed; {STEPS}", other.noun())),
    };
    let numbers = numbers.ok_or_else(|| format!("not whole numbers; {STEPS}"))?;
    let grows = numbers.windows(2).all(|pair| pair[0] < pair[1]);
    let steps: Option<Vec<u8>> = numbers.iter().map(|&number| u8::try_from(number).ok()).collect();
    match steps {
        Some(steps) if grows && steps.first() > Some(&0) && steps.last() == Some(&100) => Ok(steps),
        _ => Err(STEPS.to_owned()),
    }
}

fn size(raw: &Raw, from: u64, to: u64) -> Result<u64, String> {
    let bytes = match raw {
        Raw::Integer(..) => integer(raw),
        Raw::Text(text) => parse_size(text.trim()),
        other => return Err(format!("{} where a size is needed; {SIZE}", other.noun())),
    };
    let bytes = bytes.ok_or_else(|| format!("not a size; {SIZE}"))?;
    if bytes < from || bytes > to {
        return Err(format!("must be from {} to {}", shown_size(from), shown_size(to)));
    }
    Ok(bytes)
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A size in the largest binary unit that it is a whole number of.
pub(crate) fn shown_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

fn integer(raw: &Raw) -> Option<u64> {
    match raw {
        Raw::Integer(digits, radix) => u64::from_str_radix(digits.trim_start_matches('+'), *radix).ok(),
        _ => None,
    }
}

fn count(raw: &Raw, from: u64, to: u64) -> Result<u64, String> {
    match raw {
        Raw::Integer(..) => match integer(raw) {
            Some(value) if (from..=to).contains(&value) => Ok(value),
            _ => Err(format!("must be from {from} to {to}")),
        },
        other => Err(format!(
            "{} where a whole number is needed, from {from} to {to}",
            other.noun()
        )),
    }
}

fn word(raw: &Raw, words: &[&str]) -> Result<String, String> {
    let text = text(raw)?;
    if words.contains(&text) {
        return Ok(text.to_owned());
    }
    let choice: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let choice = match choice.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => choice.concat(),
    };
    Err(match nearest(text, words.iter().copied()) {
        Some(near) => format!("did you mean {near:?}? write {choice}"),
        None => format!("write {choice}"),
    })
}

fn bind(text: &str) -> Result<Bind, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.len() < 2 {
            return Err("the path of a unix socket must be absolute; write unix:/PATH".to_owned());
        }
        if path.len() > SUN_PATH_MAX {
            return Err(format!(
                "the path of a unix socket has at most {SUN_PATH_MAX} bytes"
            ));
        }
        directory_of(Path::new(path))?;
        return Ok(Bind::Unix(PathBuf::from(path)));
    }
    address(text)
        .map(Bind::Tcp)
        .map_err(|why| format!("{why}; {BIND}"))
}

fn pair(text: &str) -> Result<AddressPair, String> {
    let Some((announced, reachable)) = text.split_once('=') else {
        return Err(r#"write "ANNOUNCED=REACHABLE", e.g. "10.0.0.5:6379=db1.example:7000""#.to_owned());
    };
    let node = |side: &str, text: &str| {
        url::parse_host_port(text.trim(), url::DEFAULT_PORT, "write HOST:PORT")
            .map_err(|why| format!("{side} the =: {why}"))
    };
    Ok(AddressPair {
        announced: node("before", announced)?,
        reachable: node("behind", reachable)?,
    })
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Some(port) = text.strip_prefix("localhost:")
        && let Ok(port) = port.parse::<u16>()
    {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if text == "localhost" || bare.unwrap_or(text).parse::<IpAddr>().is_ok() {
        return Err("the port is missing".to_owned());
    }
    let port = text.strip_prefix("*:").or_else(|| text.strip_prefix(':'));
    if let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) {
        return Err(format!(
            "the address is missing; every interface is \"0.0.0.0:{port}\""
        ));
    }
    Err("not an IP address with a port".to_owned())
}

fn readable_file(text: &str) -> Result<String, String> {
    let file = File::open(text).map_err(|error| format!("cannot be read: {}", words_of(&error)))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err("a directory where a file is needed".to_owned()),
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("cannot be read: {}", words_of(&error))),
    }
}

fn new_file(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        let path = Path::new(text);
        if path.is_dir() {
            return Err("a directory where a file is needed".to_owned());
        }
        directory_of(path)?;
    }
    Ok(text.to_owned())
}

fn directory_of(path: &Path) -> Result<(), String> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(format!("its directory {} is not there", parent.display()))
        }
        _ => Ok(()),
    }
}

/// An I/O error without "(os error 2)".
pub(super) fn words_of(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// A bare word that is no level would be taken by the filter as a module to trace in full, so it is checked here.
fn filter(text: &str) -> Result<String, String> {
    let example = r#"write e.g. "info" or "info,pulsegate::proxy=debug""#;
    for directive in text.split(',').map(str::trim) {
        let level = match directive.rsplit_once('=') {
            Some((target, level)) if !target.trim().is_empty() => level.trim(),
            Some(_) => return Err(format!("a module is missing before the =; {example}")),
            None => directive,
        };
        if !LEVELS.contains(&level.to_lowercase().as_str()) {
            return Err(match nearest(level, LEVELS.iter().copied()) {
                Some(near) if !level.is_empty() => format!("not a level; did you mean {near:?}?"),
                _ => format!("not a level; {example}"),
            });
        }
    }
    match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not a filter: {error}; {example}")),
    }
}
