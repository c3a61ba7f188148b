//! The house's walls: who may import what, and how large a file may grow.
//!
//! Every `use` and every path written in place (`crate::x::…`, `tokio::…`) in `src/` is found in the source text,
//! without comments, strings and what is compiled only for tests, and held against [`RULES`]. The same code is then
//! tried on sources that break the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each top-level module may import besides itself and std: other modules (`crate::x`), items of one
/// (`crate::x::Y`), crates. DESIGN's table; `thiserror` and, outside the pure core, `tracing` stand beside it.
const RULES: &[(&str, &[&str])] = &[
    // Pure: no clock, no log, no counter, no randomness.
    ("decision", &["crate::replica"]),
    ("resp", &["bytes", "memchr", "redis_protocol"]),
    // The nouns and the one shared value.
    ("replica", &["crate::resp::keys::SLOTS"]),
    ("route", &["crate::replica"]),
    // One way to open a connection.
    (
        "dial",
        &[
            "crate::replica",
            "libc",
            "socket2",
            "thiserror",
            "tokio",
            "tokio_rustls",
        ],
    ),
    // DATA PLANE. Never monitor, decision, coordination, admin.
    (
        "proxy",
        &[
            "crate::config::Bind",
            "crate::config::Hold",
            "crate::config::Listener",
            "crate::config::Upstream",
            "crate::config::UpstreamMode",
            "crate::dial",
            "crate::metrics",
            "crate::replica",
            "crate::resp",
            "crate::route",
            "bytes",
            "futures_util",
            "libc",
            "sha1_smol",
            "socket2",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    // EVIDENCE. Of decision only the words of the evidence; never proxy.
    ("monitor", EVIDENCE),
    ("coordination", EVIDENCE),
    (
        "control",
        &[
            "crate::config",
            "crate::decision",
            "crate::metrics",
            "crate::replica",
            "crate::route",
            "libc",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    // Snapshots and one request channel.
    (
        "admin",
        &[
            "crate::config",
            "crate::control::Ask",
            "crate::control::Handle",
            "crate::control::status",
            "crate::decision::Request",
            "crate::metrics",
            "crate::replica",
            "axum",
            "futures_util",
            "http_body_util",
            "hyper",
            "hyper_util",
            "serde",
            "serde_json",
            "socket2",
            "thiserror",
            "tokio",
            "tracing",
        ],
    ),
    // Labels are the enums of other parts.
    (
        "metrics",
        &[
            "crate::decision",
            "crate::replica",
            "crate::route",
            "prometheus",
            "thiserror",
            "tracing",
        ],
    ),
    (
        "config",
        &[
            "crate::decision",
            "crate::replica",
            "humantime",
            "strsim",
            "thiserror",
            "toml",
            "tracing_subscriber",
        ],
    ),
    (
        "cli",
        &[
            "crate::config",
            "crate::control::status",
            "crate::decision",
            "crate::dial",
            // `check --connect` asks as the monitor does.
            "crate::monitor::Patience",
            "crate::monitor::RestCheck",
            "crate::replica",
            "bytes",
            "clap",
            "futures_util",
            "http_body_util",
            "humantime",
            "hyper",
            "hyper_util",
            "redis",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
            "tracing_subscriber",
        ],
    ),
    ("app", &["*"]),
    ("lib", &["*"]),
    ("main", &["*"]),
];

const EVIDENCE: &[&str] = &[
    "crate::config",
    "crate::decision::CellMap",
    "crate::decision::Input",
    "crate::decision::PassiveEvidence",
    "crate::decision::ProbeFailure",
    "crate::decision::ProbeKind",
    "crate::decision::RestOutcome",
    "crate::dial",
    "crate::metrics",
    "crate::replica",
    // Channels and keys land on a shard by their slot; the listener finds frames as links do.
    "crate::resp::ReplyScan",
    "crate::resp::ReplyScanner",
    "crate::resp::keys",
    "futures_util",
    "redis",
    "thiserror",
    "tokio",
    "tracing",
    // The REST check.
    "base64",
    "bytes",
    "http_body_util",
    "hyper",
    "hyper_util",
    "serde",
    "serde_json",
];

/// Crates of the language itself.
const STD: &[&str] = &["std", "core", "alloc"];

/// Most lines of a file in `src/`.
const LINES_MAX: usize = 700;
/// Most lines of `src/main.rs`.
const MAIN_LINES_MAX: usize = 120;

#[test]
fn every_module_imports_only_what_it_may() {
    let files = sources();
    assert!(files.len() > 20, "only {} files found in src/", files.len());
    let crates = dependencies();
    assert!(
        crates.contains("tokio") && crates.contains("redis_protocol"),
        "{crates:?}"
    );
    let violations = check(&files, &crates);
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn no_file_becomes_a_hall() {
    let mut too_long = Vec::new();
    for (path, text) in sources() {
        let (lines, most) = (
            text.lines().count(),
            if path == "main.rs" {
                MAIN_LINES_MAX
            } else {
                LINES_MAX
            },
        );
        if lines > most {
            too_long.push(format!("src/{path}: {lines} lines, at most {most}"));
        }
    }
    assert!(too_long.is_empty(), "\n{}\n", too_long.join("\n"));
}

// ---------------------------------------------------------------------------------------------------------------------
// The scan is tried on sources that break the rules
// ---------------------------------------------------------------------------------------------------------------------

fn violations_of(path: &str, text: &str) -> Vec<String> {
    let crates = ["tokio", "redis", "bytes", "proptest", "tracing", "tokio_rustls"];
    check(
        &BTreeMap::from([(path.to_owned(), text.to_owned())]),
        &crates.iter().map(|name| (*name).to_owned()).collect(),
    )
}

#[test]
fn forbidden_imports_are_caught_in_every_way_of_writing_them() {
    for (path, text, want) in [
        (
            "decision.rs",
            "use tokio::time::Instant;",
            "decision imports tokio::time::Instant",
        ),
        (
            "decision/x.rs",
            "use crate::route::Route;",
            "decision imports crate::route::Route",
        ),
        (
            "decision/x.rs",
            "pub(super) use crate::{replica::ReplicaId, config};",
            "decision imports crate::config",
        ),
        (
            "decision/x.rs",
            "use crate::{\n    replica,\n    control::{self, Ask},\n};",
            "crate::control::Ask",
        ),
        (
            "decision/x.rs",
            "fn f() { tokio::spawn(async {}); }",
            "decision imports tokio::spawn",
        ),
        (
            "decision/x.rs",
            "fn f() { crate::metrics::count(); }",
            "decision imports crate::metrics::count",
        ),
        (
            "decision/x.rs",
            "fn f() { tracing::info!(\"x\"); }",
            "decision imports tracing::info",
        ),
        (
            "decision/x.rs",
            "use super::super::proxy::Link;",
            "decision imports crate::proxy",
        ),
        (
            "decision/x.rs",
            "use ::redis::Cmd;",
            "decision imports redis::Cmd",
        ),
        ("decision/x.rs", "use redis as r;", "decision imports redis"),
        ("decision/x.rs", "extern crate redis;", "decision imports redis"),
        (
            "decision.rs",
            "#[derive(Debug, bytes::X)]\nstruct A;",
            "decision imports bytes::X",
        ),
        (
            "decision.rs",
            "impl From<crate::route::Epoch> for u8 {}",
            "decision imports crate::route::Epoch",
        ),
        (
            "proxy/link.rs",
            "use crate::monitor::Beat;",
            "proxy imports crate::monitor::Beat",
        ),
        (
            "proxy/link.rs",
            "use crate::config::{Hold, Admin};",
            "proxy imports crate::config::Admin",
        ),
        (
            "proxy/link.rs",
            "use crate::config::*;",
            "proxy imports crate::config::*",
        ),
        (
            "proxy/link.rs",
            "use crate::decision::Health;",
            "proxy imports crate::decision::Health",
        ),
        (
            "monitor.rs",
            "use crate::proxy::Link;",
            "monitor imports crate::proxy::Link",
        ),
        (
            "monitor.rs",
            "use crate::decision::Engine;",
            "monitor imports crate::decision::Engine",
        ),
        (
            "coordination/etcd.rs",
            "use crate::proxy;",
            "coordination imports crate::proxy",
        ),
        (
            "admin.rs",
            "use crate::control::Engine;",
            "admin imports crate::control::Engine",
        ),
        ("novel.rs", "", "novel has no rule"),
        (
            "decision.rs",
            "const A: &str = \"\\\"\"; use redis::Cmd;",
            "decision imports redis::Cmd",
        ),
        (
            "decision.rs",
            "fn f<'a>(c: char) -> bool { c == '\"' }\nuse redis::Cmd; // \"",
            "decision imports redis::Cmd",
        ),
        (
            "decision.rs",
            "#[cfg(test)]\nmod tests { use proptest::x; }\nuse redis::Cmd;",
            "decision imports redis::Cmd",
        ),
        (
            "decision.rs",
            "#[cfg(not(test))]\nuse redis::Cmd;",
            "decision imports redis::Cmd",
        ),
    ] {
        let found = violations_of(path, text);
        assert!(
            found.iter().any(|line| line.contains(want)),
            "in {path}: {text}\nwanted {want:?}, found {found:?}"
        );
    }
}

#[test]
fn what_is_allowed_is_not_caught() {
    for (path, text) in [
        (
            "decision.rs",
            "use std::time::{Duration, Instant};\nuse crate::replica::{ReplicaId, ShardId};\nuse self::x::Y;",
        ),
        (
            "decision/x.rs",
            "use super::event::{Event, *};\nuse crate::decision::Health;\nfn f() { event::g(); Self::h(); }",
        ),
        ("decision/x/y.rs", "use super::super::event::Event;"),
        (
            "decision.rs",
            "// use tokio::x;\n/* use redis::Cmd; /* crate::proxy::X */ */\n/// crate::route::Route\nconst A: &str = \"tokio::x\";",
        ),
        (
            "decision.rs",
            "const A: &str = r#\"use redis::\"Cmd\";\"#; const B: u8 = b'\"'; const C: &[u8] = b\"tokio::x\";",
        ),
        (
            "decision.rs",
            "#[cfg(test)]\nmod tests {\n    use proptest::prelude::*;\n    fn f() { if true { tokio::x(); } }\n}",
        ),
        (
            "decision.rs",
            "#[cfg(test)]\n#[allow(unused)]\nuse proptest::prelude::*;",
        ),
        ("decision/tests.rs", "use proptest::prelude::*;"),
        ("decision/tests/world.rs", "use proptest::prelude::*;"),
        (
            "decision/x.rs",
            "fn f(tokio: u8) { tokio.max(1); self.redis(); let x = Foo::redis; }",
        ),
        (
            "proxy.rs",
            "use crate::config::{Hold, Listener};\nuse crate::config::Bind::{Tcp, Unix};\nuse tokio::net::TcpStream;",
        ),
        (
            "monitor.rs",
            "use crate::decision::{Input, ProbeKind};\nuse redis::aio::PubSub;\nuse crate::dial::Dialer;",
        ),
        (
            "app.rs",
            "use crate::{admin, proxy, monitor};\nuse tokio::runtime;",
        ),
    ] {
        let found = violations_of(path, text);
        assert!(found.is_empty(), "in {path}: {text}\nfound {found:?}");
    }
}

#[test]
fn a_module_declared_for_tests_is_left_out() {
    let crates = BTreeSet::from(["proptest".to_owned()]);
    let files = |attribute: &str| {
        BTreeMap::from([
            ("decision.rs".to_owned(), format!("{attribute}\nmod sim;")),
            (
                "decision/sim.rs".to_owned(),
                "mod rng;\nuse proptest::x;".to_owned(),
            ),
            ("decision/sim/rng.rs".to_owned(), "use proptest::x;".to_owned()),
        ])
    };
    assert_eq!(check(&files("#[cfg(test)]"), &crates), Vec::<String>::new());
    assert_eq!(check(&files(""), &crates).len(), 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// The scan
// ---------------------------------------------------------------------------------------------------------------------

/// The text of every file in `src/`, by its path below it.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src/ can be listed") {
            let path = entry.expect("src/ can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).expect("it lies below src/");
                let text = std::fs::read_to_string(&path).expect("a source file can be read");
                files.insert(name.to_string_lossy().into_owned(), text);
            }
        }
    }
    files
}

/// The crates that the library depends on, as they are written in code.
fn dependencies() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let text = std::fs::read_to_string(path).expect("Cargo.toml can be read");
    let manifest: toml::Table = text.parse().expect("Cargo.toml is TOML");
    let names = |section: &str| -> Vec<String> {
        let table = manifest.get(section).and_then(toml::Value::as_table);
        table
            .into_iter()
            .flat_map(|table| table.keys().cloned())
            .collect()
    };
    names("dependencies")
        .into_iter()
        .chain(names("dev-dependencies"))
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Every violation, as `src/path: module imports path`.
fn check(files: &BTreeMap<String, String>, crates: &BTreeSet<String>) -> Vec<String> {
    let mut violations = Vec::new();
    let scanned: BTreeMap<&str, Scanned> = files
        .iter()
        .map(|(path, text)| (path.as_str(), Scanned::new(path, text)))
        .collect();
    let for_tests: Vec<String> = scanned
        .values()
        .flat_map(|file| {
            let module = file.module.join("/");
            file.test_modules
                .iter()
                .map(move |name| format!("{module}/{name}"))
        })
        .collect();
    for (path, file) in &scanned {
        let module = file.module.join("/");
        let is_for_tests = file.module.iter().any(|name| name == "tests")
            || for_tests
                .iter()
                .any(|prefix| module == *prefix || module.starts_with(&format!("{prefix}/")));
        if is_for_tests {
            continue;
        }
        let top = file.module[0].as_str();
        let Some((_, allowed)) = RULES.iter().find(|(name, _)| *name == top) else {
            violations.push(format!("src/{path}: {top} has no rule in tests/imports.rs"));
            continue;
        };
        let mut seen = BTreeSet::new();
        for import in file.imports(crates) {
            if !is_allowed(&import, top, allowed) && seen.insert(import.clone()) {
                violations.push(format!("src/{path}: {top} imports {import}"));
            }
        }
    }
    violations
}

fn is_allowed(import: &str, own: &str, allowed: &[&str]) -> bool {
    let is_within = |prefix: &str| {
        import
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    STD.iter().any(|name| is_within(name))
        || is_within(&format!("crate::{own}"))
        || allowed.iter().any(|rule| *rule == "*" || is_within(rule))
}

/// A file as names and signs.
struct Scanned {
    /// `["proxy", "link"]` for `proxy/link.rs`.
    module: Vec<String>,
    tokens: Vec<String>,
    /// Modules that it declares for tests only.
    test_modules: Vec<String>,
}

impl Scanned {
    fn new(path: &str, text: &str) -> Scanned {
        let module = path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        let (tokens, test_modules) = without_tests(&tokens(&without_text(text)));
        Scanned {
            module,
            tokens,
            test_modules,
        }
    }

    /// The full paths of everything imported or named in place that may come from elsewhere.
    fn imports(&self, crates: &BTreeSet<String>) -> Vec<String> {
        let mut imports = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let before = at.checked_sub(1).map(|i| self.tokens[i].as_str());
            let token = self.tokens[at].as_str();
            let next = self.tokens.get(at + 1).map(String::as_str);
            if token == "use" && next != Some("<") {
                let mut paths = Vec::new();
                at = use_tree(&self.tokens, at + 1, &[], &mut paths);
                imports.extend(paths.iter().filter_map(|path| self.resolve(path, crates)));
                continue;
            }
            if token == "crate" && before == Some("extern") {
                imports.extend(next.map(str::to_owned));
            }
            // Within a path that has begun before, nothing new begins; `::redis::x` begins after its sign.
            let has_begun = match before {
                Some(".") => true,
                Some("::") => at
                    .checked_sub(2)
                    .is_some_and(|i| is_name(&self.tokens[i]) || self.tokens[i] == ">"),
                _ => false,
            };
            if is_name(token) && next == Some("::") && !has_begun {
                let mut path = vec![token.to_owned()];
                let mut end = at + 1;
                while self.tokens.get(end).is_some_and(|sign| sign == "::")
                    && self.tokens.get(end + 1).is_some_and(|name| is_name(name))
                {
                    path.push(self.tokens[end + 1].clone());
                    end += 2;
                }
                imports.extend(self.resolve(&path, crates));
            }
            at += 1;
        }
        imports
    }

    /// A path from the crate's root, or from another crate; `None` for what is the module's own.
    fn resolve(&self, path: &[String], crates: &BTreeSet<String>) -> Option<String> {
        let ups = path.iter().take_while(|name| *name == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path.join("::")),
            "super" if ups >= self.module.len() => {
                let rest = &path[ups..];
                Some(format!("crate::{}", rest.join("::")))
            }
            first if STD.contains(&first) || crates.contains(first) => Some(path.join("::")),
            _ => None,
        }
    }
}

/// Reads a use tree from `at`, with what stands before it; returns the position after it.
fn use_tree(tokens: &[String], mut at: usize, prefix: &[String], out: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("::") => at += 1,
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = use_tree(tokens, at, &path, out);
                    if tokens.get(at).is_some_and(|token| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            Some("as") => at += 2,
            Some("self") if !path.is_empty() => at += 1,
            Some(name) if is_name(name) || name == "*" => {
                path.push(name.to_owned());
                at += 1;
            }
            _ => {
                out.push(path);
                // At `;`, `,` or `}`: the caller knows which it waits for.
                return at;
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Takes comments, strings and characters out; a space stands for each.
fn without_text(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let after_name = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let end = match rest {
            ['/', '/', ..] => Some(rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())),
            ['/', '*', ..] => Some(comment_end(rest)),
            ['r', '"' | '#', ..] if !after_name => raw_string_end(rest, 1),
            ['b' | 'c', 'r', '"' | '#', ..] if !after_name => raw_string_end(rest, 2),
            ['"', ..] => Some(quoted_end(rest, '"')),
            // A lifetime has no closing quote right after one character.
            ['\'', '\\', ..] => Some(quoted_end(rest, '\'')),
            ['\'', _, '\'', ..] => Some(3),
            _ => None,
        };
        match end {
            Some(length) => {
                out.push(' ');
                at += length;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

fn comment_end(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `None` for a raw name such as `r#type`.
fn raw_string_end(rest: &[char], prefix: usize) -> Option<usize> {
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&'"') {
        return None;
    }
    let mut at = open + 1;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(rest.len())
}

fn quoted_end(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Names, `::`, and every other sign by itself.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let mut token = String::from(c);
        if c.is_alphanumeric() || c == '_' {
            while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                token.push(next);
            }
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            token.push(':');
        }
        tokens.push(token);
    }
    tokens
}

/// Takes out what stands under `#[cfg(test)]`, and returns the names of modules in other files that did.
fn without_tests(tokens: &[String]) -> (Vec<String>, Vec<String>) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut modules) = (Vec::with_capacity(tokens.len()), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(MARK.len()).eq(MARK) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += MARK.len();
        let item = at;
        // The item ends with its `;`, or with the brace that closes its body.
        let mut depth = 0_usize;
        while at < tokens.len() {
            let token = tokens[at].as_str();
            at += 1;
            match token {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && token == "}" {
                        // `use a::{b};` goes on to its `;`.
                        if tokens.get(at).is_some_and(|next| next == ";") {
                            at += 1;
                        }
                        break;
                    }
                }
                ";" if depth == 0 => break,
                _ => {}
            }
        }
        let of_module = tokens[item..at].windows(3).find(|three| three[0] == "mod");
        if let Some([_, name, sign]) = of_module
            && sign == ";"
        {
            modules.push(name.clone());
        }
    }
    (kept, modules)
}
