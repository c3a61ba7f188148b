//! Random scripts: what one session says, with the state kept in mind that decides where a script may wait for answers.

use pulsegate::resp::encode_command;

use super::commands::{BADLUA, DATA, FUN, LAST, LUA, RAW, STATE};

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// One thing that a session does.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Step {
    /// A command as a client library writes it. `{P}` in a word is the script's own prefix.
    Say(Vec<Vec<u8>>),
    /// The same, its answer announced by an ECHO of this mask: see [`comparable`](super::lane::comparable).
    Masked(&'static str, Vec<Vec<u8>>),
    /// The same as bytes: inline requests, empty arrays, protocol errors.
    Raw(Vec<u8>),
    /// Waits until everything so far is answered.
    Wait,
}

/// Stands for a prefix of its own for each run of a script, so that what an earlier one left does not matter.
const PREFIX: &str = "{P}";
/// Stands for the name of [`LUA`], in which the prefix is.
const SHA: &str = "{SHA}";

impl Step {
    /// Its bytes.
    pub(crate) fn bytes(&self, prefix: &str) -> Vec<u8> {
        match self {
            Step::Say(words) => command(words, prefix),
            Step::Masked(mask, words) => {
                let mut bytes = encode_command(&[b"ECHO", mask.as_bytes()]);
                bytes.extend(command(words, prefix));
                bytes
            }
            Step::Raw(bytes) => replaced(bytes, prefix),
            Step::Wait => Vec::new(),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Say(words) | Step::Masked(_, words) => {
                for word in words {
                    let shown = &word[..word.len().min(60)];
                    write!(f, "\"{}\" ", shown.escape_ascii())?;
                }
                Ok(())
            }
            Step::Raw(bytes) => write!(f, "raw {}", bytes.escape_ascii()),
            Step::Wait => write!(f, "(waits)"),
        }
    }
}

fn command(words: &[Vec<u8>], prefix: &str) -> Vec<u8> {
    let words: Vec<Vec<u8>> = words.iter().map(|w| replaced(w, prefix)).collect();
    encode_command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn replaced(word: &[u8], prefix: &str) -> Vec<u8> {
    if word == SHA.as_bytes() {
        let digest = sha1_smol::Sha1::from(replaced(LUA.as_bytes(), prefix)).digest();
        return digest.to_string().into_bytes();
    }
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.windows(PREFIX.len()).position(|w| w == PREFIX.as_bytes()) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(prefix.as_bytes());
        rest = &rest[at + PREFIX.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Says what stands behind a word of the tables.
fn fill(word: &str, random: &mut Random) -> Vec<u8> {
    let letters: &[&str] = match word {
        "STR" => &["a", "b", "c"],
        "LST" => &["l", "m"],
        "HSH" => &["h", "i"],
        "SET" => &["s", "t"],
        "ZST" => &["y", "z"],
        "STM" => &["w", "x"],
        "GEO" => &["g", "e"],
        "BIT" => &["o", "n"],
        "HLL" => &["p", "q"],
        "KEY" => &["a", "b", "l", "h", "s", "z", "x", "g", "o", "p", "none"],
        "CHN" => &["c1", "c2", "c3"],
        _ => &[],
    };
    if !letters.is_empty() {
        return format!("{PREFIX}{}", random.pick(letters)).into_bytes();
    }
    match word {
        "FLD" => random.pick(&["f1", "f2", "f3", "f4"]).as_bytes().to_vec(),
        "NUM" => random.below(40).to_string().into_bytes(),
        "NUM-NUM" => format!("{}-{}", random.below(40), random.below(4)).into_bytes(),
        "INT" => (random.below(2000) as i64 - 1000).to_string().into_bytes(),
        "EMPTY" => Vec::new(),
        "SHORT" => text(random, 20),
        "VAL" => {
            let most = if random.one_in(12) { 70_000 } else { 300 };
            text(random, most)
        }
        "LUA" => LUA.into(),
        "BADLUA" => BADLUA.into(),
        "FUN" => FUN.into(),
        "SHA" => SHA.into(),
        other => other.replace("\\s", " ").into_bytes(),
    }
}

fn text(random: &mut Random, most: usize) -> Vec<u8> {
    let len = random.below(most);
    let alphabet: &[u8] = if random.one_in(3) {
        b"\r\n\0\xff $*-+:\"'"
    } else {
        b"abcxyz0189"
    };
    (0..len).map(|_| alphabet[random.below(alphabet.len())]).collect()
}

/// What a script knows of its session: enough to know what will be answered, and no more.
#[derive(Default)]
struct Known {
    /// MULTI was said, and neither EXEC nor DISCARD since.
    open: bool,
    /// And it (un)subscribed: a server answers with more frames than EXEC's array counts.
    subscribes: bool,
    /// CLIENT REPLY OFF; SKIP.
    muted: bool,
    skips: bool,
}

/// One script.
pub(crate) fn script(random: &mut Random) -> Vec<Step> {
    let mut known = Known::default();
    let mut steps = Vec::new();
    // Some sessions do a little of everything, some hardly change their connection.
    let state_in = [3, 8, 30][random.below(3)];
    let most = [6, 40, 150][random.below(3)];
    let len = 1 + random.below(most);
    // Half of the scripts are of one mind about what they do.
    let theme = random.one_in(2).then(|| random.below(STATE.len()));
    while steps.len() < len {
        if random.one_in(14) {
            end_segment(&mut known, &mut steps);
        } else if random.one_in(25) {
            let raw = random.pick(RAW);
            // Servers do not agree whether an empty request is the one that CLIENT REPLY SKIP means.
            if known.skips && (raw.trim().is_empty() || raw.starts_with("*0") || raw.starts_with("*-")) {
                continue;
            }
            known.note(raw.trim());
            steps.push(Step::Raw(raw.as_bytes().to_vec()));
        } else {
            let group = if random.one_in(state_in) {
                match theme {
                    Some(theme) if !random.one_in(3) => STATE[theme].1,
                    _ => weighted(STATE, random),
                }
            } else {
                weighted(DATA, random)
            };
            let lines: Vec<&str> = group.split("; ").collect();
            let line = random.pick(&lines);
            say(line, random, &mut known, &mut steps);
        }
    }
    end_segment(&mut known, &mut steps);
    if random.one_in(6) {
        steps.push(Step::Raw(random.pick(LAST).as_bytes().to_vec()));
    }
    steps
}

fn weighted(groups: &[(usize, &'static str)], random: &mut Random) -> &'static str {
    let mut left = random.below(groups.iter().map(|(weight, _)| weight).sum());
    for (weight, group) in groups {
        if left < *weight {
            return group;
        }
        left -= weight;
    }
    unreachable!("the weights sum up")
}

fn say(line: &str, random: &mut Random, known: &mut Known, steps: &mut Vec<Step>) {
    let mut words: Vec<&str> = line.split(' ').collect();
    // A server mixes the frames of subscriptions into EXEC's array. With messages among them, or with the array's own
    // beginning held back, no client could tell them apart, and Pulsegate cannot either.
    let subscribes = words[0].contains("subscribe");
    if known.open && (subscribes && known.muted || words[0].ends_with("publish") && known.subscribes) {
        return;
    }
    known.subscribes |= known.open && subscribes;
    let masked = words[0].starts_with('~');
    if masked && (known.open || known.muted || known.skips) {
        return;
    }
    // In a transaction these take the answer out of EXEC's array, which nobody can read then.
    if known.open && (line.starts_with("client reply o") || line.starts_with("client reply s")) {
        return;
    }
    let mask = match words[0] {
        "~hello" => {
            words[0] = "hello";
            Some("~hello")
        }
        "~info" => Some("~info"),
        "~any" => Some("~any"),
        _ => None,
    };
    if words[0].starts_with('~') {
        words.remove(0);
    }
    known.note(&words.join(" "));
    let words = words
        .into_iter()
        .enumerate()
        .map(|(i, word)| {
            let mut filled = fill(word, random);
            if i == 0 && random.one_in(4) {
                filled.make_ascii_uppercase();
            }
            filled
        })
        .collect();
    steps.push(match mask {
        Some(mask) => Step::Masked(mask, words),
        None => Step::Say(words),
    });
}

/// Brings the session to where a PING is answered at once, and waits.
fn end_segment(known: &mut Known, steps: &mut Vec<Step>) {
    let word = |w: &str| w.as_bytes().to_vec();
    if known.open {
        steps.push(Step::Say(vec![word("discard")]));
        // Where MULTI was not what it seemed, this says the same everywhere.
        steps.push(Step::Say(vec![word("exec")]));
    }
    if known.muted {
        // A subscriber of RESP2 may not say CLIENT.
        for all in ["unsubscribe", "punsubscribe", "sunsubscribe"] {
            steps.push(Step::Say(vec![word(all)]));
        }
    }
    if known.muted || known.skips {
        steps.push(Step::Say(vec![word("client"), word("reply"), word("on")]));
    }
    *known = Known::default();
    steps.push(Step::Wait);
}

impl Known {
    fn note(&mut self, line: &str) {
        self.skips = false;
        match line.to_ascii_lowercase().as_str() {
            "multi" | "multi extra" => self.open = true,
            "client reply off" => self.muted = true,
            "client reply skip" => self.skips = true,
            // It may fail, where a subscriber says it.
            _ => {}
        }
    }
}
