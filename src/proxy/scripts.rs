//! Scripts and functions that applications have used, so that a replica that does not know them yet is told in time.
//!
//! Active-Active databases replicate neither. Before an EVALSHA (or FCALL) goes to a replica that may not know what it
//! names, the worker says SCRIPT LOAD (FUNCTION LOAD) on the same link: the command's order is kept, and nothing is sent
//! twice. A replica that restarts, or answers NOSCRIPT, counts as knowing nothing again.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::command::ScriptUse;
use super::topology::Place;
use crate::resp;

/// At most so many scripts are remembered, and functions' libraries.
const SCRIPTS: usize = 1024;
/// And so many bytes of them.
const BYTES: usize = 8 * 1024 * 1024;

/// A script's name: the SHA-1 of its text, in small hexadecimal letters.
type Sha = [u8; 40];

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Scripts {
    texts: HashSet<Bytes>,
    /// Those whose name has not been asked for yet (a name costs more than a look into the set), and who learned them from
    /// the application itself.
    unnamed: Vec<(Bytes, Option<Place>)>,
    named: HashMap<Sha, Bytes>,
    libraries: Vec<Library>,
    bytes: usize,
    /// What each replica, or node of one, has been told.
    told: HashMap<Place, Told>,
}

/// A library of functions.
#[derive(Debug)]
struct Library {
    /// The first line of its code: engine and name.
    head: Bytes,
    /// The whole FUNCTION LOAD.
    load: Bytes,
}

#[derive(Clone, Debug, Default)]
struct Told {
    scripts: HashSet<Sha>,
    libraries: bool,
}

impl Scripts {
    /// Knows nothing yet.
    pub(crate) fn new() -> Scripts {
        Scripts {
            texts: HashSet::new(),
            unnamed: Vec::new(),
            named: HashMap::new(),
            libraries: Vec::new(),
            bytes: 0,
            told: HashMap::new(),
        }
    }

    /// Whether the success of the command in `frame` is to be [`told`](Self::told).
    pub(crate) fn wants(&self, kind: ScriptUse, frame: &[u8]) -> bool {
        match kind {
            ScriptUse::Eval => !self.texts.contains(word(frame, 1)),
            ScriptUse::Load => !self.texts.contains(word(frame, 2)),
            ScriptUse::Flush | ScriptUse::Functions => true,
            ScriptUse::EvalSha | ScriptUse::Fcall => false,
        }
    }

    /// The application has told `replica` what is in `frame`, with success.
    pub(crate) fn told(&mut self, kind: ScriptUse, frame: &[u8], replica: Place) {
        match kind {
            ScriptUse::Eval => self.learn(word(frame, 1), replica),
            ScriptUse::Load => self.learn(word(frame, 2), replica),
            ScriptUse::Flush => {
                self.bytes = self.libraries.iter().map(|library| library.load.len()).sum();
                (self.texts, self.unnamed, self.named) = Default::default();
            }
            ScriptUse::Functions => self.functions(frame, replica),
            ScriptUse::EvalSha | ScriptUse::Fcall => {}
        }
    }

    /// What has to be said to `replica` before the command in `frame`, if anything.
    pub(crate) fn before(&mut self, kind: ScriptUse, frame: &[u8], replica: Place) -> Vec<Bytes> {
        match kind {
            ScriptUse::EvalSha => self.load(word(frame, 1), replica).into_iter().collect(),
            ScriptUse::Fcall
                if !std::mem::replace(&mut self.told.entry(replica).or_default().libraries, true) =>
            {
                self.libraries
                    .iter()
                    .map(|library| library.load.clone())
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn learn(&mut self, text: &[u8], replica: Place) {
        if self.texts.contains(text) || text.len() > BYTES {
            return;
        }
        self.make_room(text.len());
        self.bytes += text.len();
        let text = Bytes::copy_from_slice(text);
        self.unnamed.push((text.clone(), Some(replica)));
        self.texts.insert(text);
    }

    /// Applications that make a new script for each call must not fill the memory.
    fn make_room(&mut self, len: usize) {
        if self.texts.len() + self.libraries.len() >= SCRIPTS || self.bytes + len > BYTES {
            self.bytes = 0;
            (self.texts, self.unnamed, self.named, self.libraries) = Default::default();
        }
    }

    fn load(&mut self, sha: &[u8], replica: Place) -> Option<Bytes> {
        let mut name: Sha = sha.try_into().ok()?;
        name.make_ascii_lowercase();
        if self.told.entry(replica).or_default().scripts.contains(&name) {
            return None;
        }
        for (text, told) in self.unnamed.drain(..) {
            let name = name_of(&text);
            if let Some(replica) = told {
                self.told.entry(replica).or_default().scripts.insert(name);
            }
            self.named.insert(name, text);
        }
        if self.told.entry(replica).or_default().scripts.contains(&name) {
            return None;
        }
        let text = self.named.get(&name)?;
        self.told.entry(replica).or_default().scripts.insert(name);
        Some(resp::encode_command(&[b"SCRIPT", b"LOAD", text]).into())
    }

    fn functions(&mut self, frame: &[u8], replica: Place) {
        // What is known so far is there already, as far as anyone can tell: the application does the rest itself.
        let has_all = self.told.entry(replica).or_default().libraries || self.libraries.is_empty();
        let mut words = resp::args(frame).skip(1);
        if words.next().is_some_and(|sub| sub.eq_ignore_ascii_case(b"LOAD"))
            && let Some(code) = words.last()
        {
            // Without REPLACE: what a replica has of that name stays.
            let load = Bytes::from(resp::encode_command(&[b"FUNCTION", b"LOAD", code]));
            let head = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if load.len() <= BYTES {
                // It was loaded, so it replaced what had its name.
                if let Some(place) = self.libraries.iter().position(|library| *library.head == *head) {
                    self.bytes -= self.libraries.remove(place).load.len();
                }
                self.make_room(load.len());
                self.bytes += load.len();
                let head = Bytes::copy_from_slice(head);
                self.libraries.push(Library { head, load });
            }
        } else {
            // Deleted, flushed or restored: nobody knows what there is, so nothing is brought back.
            self.libraries.clear();
        }
        for told in self.told.values_mut() {
            told.libraries = false;
        }
        self.told.entry(replica).or_default().libraries = has_all;
    }

    /// `replica` may have forgotten everything.
    pub(crate) fn forgotten_by(&mut self, replica: Place) {
        self.scripts_forgotten_by(replica);
        self.told.entry(replica).or_default().libraries = false;
    }

    /// `replica` has said that it does not know a script; of functions that says nothing.
    pub(crate) fn scripts_forgotten_by(&mut self, replica: Place) {
        self.told.entry(replica).or_default().scripts.clear();
        for (_, told) in &mut self.unnamed {
            *told = told.filter(|told| *told != replica);
        }
    }
}

fn word(frame: &[u8], n: usize) -> &[u8] {
    resp::args(frame).nth(n).unwrap_or_default()
}

fn name_of(text: &[u8]) -> Sha {
    let mut name = [0; 40];
    for (pair, byte) in name
        .chunks_exact_mut(2)
        .zip(sha1_smol::Sha1::from(text).digest().bytes())
    {
        pair.copy_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
    }
    name
}

fn hex(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::ReplicaId;

    const LOCAL: Place = Place::endpoint(ReplicaId(0));
    const REMOTE: Place = Place::endpoint(ReplicaId(1));
    const RETURN_1: &str = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";

    fn before(scripts: &mut Scripts, kind: ScriptUse, words: &[&str], to: Place) -> Vec<String> {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        let frame = resp::encode_command(&words);
        let said = scripts.before(kind, &frame, to);
        if scripts.wants(kind, &frame) {
            scripts.told(kind, &frame, to);
        }
        said.iter()
            .map(|f| {
                let words: Vec<_> = resp::args(f).map(String::from_utf8_lossy).collect();
                words.join(" ")
            })
            .collect()
    }

    #[test]
    fn a_script_that_was_seen_is_told_once_to_each_replica() {
        let mut scripts = Scripts::new();
        let s = &mut scripts;
        assert!(
            before(s, ScriptUse::EvalSha, &["EVALSHA", RETURN_1, "0"], LOCAL).is_empty(),
            "never seen"
        );
        assert!(before(s, ScriptUse::Eval, &["EVAL", "return 1", "0"], LOCAL).is_empty());
        let sha = RETURN_1.to_uppercase();
        assert!(
            before(s, ScriptUse::EvalSha, &["EVALSHA", &sha, "0"], LOCAL).is_empty(),
            "the application has told it"
        );
        assert_eq!(
            before(s, ScriptUse::EvalSha, &["EVALSHA", &sha, "0"], REMOTE),
            ["SCRIPT LOAD return 1"]
        );
        assert!(
            before(s, ScriptUse::EvalSha, &["EVALSHA", RETURN_1, "0"], REMOTE).is_empty(),
            "once"
        );
        s.forgotten_by(REMOTE);
        assert!(before(s, ScriptUse::EvalSha, &["EVALSHA", RETURN_1, "0"], LOCAL).is_empty());
        assert_eq!(
            before(s, ScriptUse::EvalSha, &["EVALSHA", RETURN_1, "0"], REMOTE).len(),
            1
        );
    }

    #[test]
    fn flushed_scripts_stay_away() {
        let mut scripts = Scripts::new();
        before(
            &mut scripts,
            ScriptUse::Load,
            &["SCRIPT", "LOAD", "return 1"],
            LOCAL,
        );
        before(&mut scripts, ScriptUse::Flush, &["SCRIPT", "FLUSH"], LOCAL);
        scripts.forgotten_by(LOCAL);
        assert!(
            before(
                &mut scripts,
                ScriptUse::EvalSha,
                &["EVALSHA", RETURN_1, "0"],
                LOCAL
            )
            .is_empty()
        );
    }

    #[test]
    fn libraries_are_brought_and_never_replaced() {
        let mut scripts = Scripts::new();
        let s = &mut scripts;
        for load in [
            &["FUNCTION", "LOAD", "#!lua name=l\nold"][..],
            &["FUNCTION", "LOAD", "REPLACE", "#!lua name=l\nnew"],
        ] {
            before(s, ScriptUse::Functions, load, LOCAL);
        }
        assert!(
            before(s, ScriptUse::Fcall, &["FCALL", "f", "0"], LOCAL).is_empty(),
            "the application has loaded it"
        );
        assert_eq!(
            before(s, ScriptUse::Fcall, &["FCALL", "f", "0"], REMOTE),
            ["FUNCTION LOAD #!lua name=l\nnew"]
        );
        assert!(before(s, ScriptUse::Fcall, &["FCALL", "f", "0"], REMOTE).is_empty());
        before(s, ScriptUse::Functions, &["FUNCTION", "FLUSH"], LOCAL);
        assert!(before(s, ScriptUse::Fcall, &["FCALL", "f", "0"], REMOTE).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut scripts = Scripts::new();
        for n in 0..3 * SCRIPTS {
            before(
                &mut scripts,
                ScriptUse::Eval,
                &["EVAL", &format!("return {n}"), "0"],
                LOCAL,
            );
        }
        assert!(scripts.texts.len() <= SCRIPTS);
        let long = "-".repeat(BYTES / 2 + 1);
        for n in 0..4 {
            before(
                &mut scripts,
                ScriptUse::Eval,
                &["EVAL", &format!("{long}{n}"), "0"],
                LOCAL,
            );
        }
        assert!(scripts.bytes <= BYTES, "{}", scripts.bytes);
    }
}
