//! What is said on the channels, and who says it.
//!
//! Pure: times come in as durations since the incarnation began.
//!
//! A message is one line of words, for instance
//! `pg1 hb 5f0c…e1 42 1730021 1764047000123`: version, kind (`hb`, or `fence`), incarnation, sequence number (or the
//! fence's id), send time in microseconds since the incarnation began, and the wall clock in milliseconds since 1970
//! for people who read along. The instance is in the channel's name and, since a name can be configured twice, in
//! the message too.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const VERSION: &str = "pg1";

/// Who this Pulsegate is: the instance is unique among all that watch the same replicas at the same time, the
/// incarnation tells a restarted process from the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    instance: String,
    incarnation: u64,
}

impl Identity {
    /// A new incarnation of the instance `host`-`pid`-random.
    pub fn generate() -> Identity {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .or_else(|| std::env::var("HOSTNAME").ok())
            .unwrap_or_default();
        let host = match host.trim() {
            "" => "host",
            name => name,
        };
        Identity::named(&format!(
            "{host}-{}-{:08x}",
            std::process::id(),
            random() & 0xffff_ffff
        ))
    }

    /// A new incarnation of the instance `name`. Characters with a meaning in channel patterns, hash tags or messages
    /// become `_`.
    pub fn named(name: &str) -> Identity {
        Identity {
            instance: word(name),
            incarnation: random(),
        }
    }

    /// The instance's name, as it appears in channels and keys.
    pub fn instance(&self) -> &str {
        &self.instance
    }
}

/// `text` as one word: only letters, digits, `.`, `_` and `-`.
pub(super) fn word(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c,
            _ => '_',
        })
        .collect()
}

/// Every `RandomState` has keys of its own that come from the system's random source.
fn random() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

/// What a message says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// A heartbeat and its sequence number.
    Heartbeat(u64),
    /// A fence and its id.
    Fence(u64),
}

/// A message of this incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) word: Word,
    /// When it was sent, since the incarnation began; whole microseconds.
    pub(super) sent: Duration,
}

/// Why a message is no evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unusable {
    /// Another instance's, or an earlier incarnation's.
    Foreign,
    /// Not a message of ours.
    Malformed,
}

impl Message {
    /// The line to publish. `wall_ms` is for people.
    pub(super) fn encode(&self, identity: &Identity, wall_ms: u128) -> String {
        let (kind, number) = match self.word {
            Word::Heartbeat(seq) => ("hb", seq),
            Word::Fence(id) => ("fence", id),
        };
        format!(
            "{VERSION} {kind} {} {:016x} {number} {} {wall_ms}",
            identity.instance,
            identity.incarnation,
            self.sent.as_micros()
        )
    }

    /// Reads a line; anything but a message of `identity` is refused.
    pub(super) fn decode(line: &[u8], identity: &Identity) -> Result<Message, Unusable> {
        let line = std::str::from_utf8(line).map_err(|_| Unusable::Malformed)?;
        let mut words = line.split(' ');
        let mut next = || words.next().ok_or(Unusable::Malformed);
        if next()? != VERSION {
            return Err(Unusable::Malformed);
        }
        let kind = next()?;
        let instance = next()?;
        let incarnation = u64::from_str_radix(next()?, 16).map_err(|_| Unusable::Malformed)?;
        let number: u64 = next()?.parse().map_err(|_| Unusable::Malformed)?;
        let sent: u64 = next()?.parse().map_err(|_| Unusable::Malformed)?;
        let word = match kind {
            "hb" => Word::Heartbeat(number),
            "fence" => Word::Fence(number),
            _ => return Err(Unusable::Malformed),
        };
        if instance != identity.instance || incarnation != identity.incarnation {
            return Err(Unusable::Foreign);
        }
        Ok(Message {
            word,
            sent: Duration::from_micros(sent),
        })
    }
}

/// Which heartbeats of one channel were heard already: the newest and a window of 64 before it. A backlog that is
/// replayed in order stays within the window; what falls out of it is treated as heard.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    /// The newest sequence number; 0 before the first.
    newest: u64,
    /// Bit `n`: `newest - n` was heard.
    window: u64,
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heard({} {:064b})", self.newest, self.window)
    }
}

impl Heard {
    /// Whether `seq` is heard for the first time; it then counts as heard. Sequence numbers begin at 1.
    pub(super) fn first_time(&mut self, seq: u64) -> bool {
        if seq == 0 {
            return false;
        }
        if seq > self.newest {
            let by = seq - self.newest;
            self.window = if by >= 64 { 0 } else { self.window << by } | 1;
            self.newest = seq;
            return true;
        }
        let back = self.newest - seq;
        if back >= 64 {
            return false;
        }
        let bit = 1 << back;
        let first = self.window & bit == 0;
        self.window |= bit;
        first
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heartbeat(seq: u64, micros: u64) -> Message {
        Message {
            word: Word::Heartbeat(seq),
            sent: Duration::from_micros(micros),
        }
    }

    #[test]
    fn reads_what_it_writes() {
        let identity = Identity::named("app-1");
        for message in [
            heartbeat(1, 0),
            heartbeat(u64::MAX, 123_456_789),
            Message {
                word: Word::Fence(7),
                sent: Duration::from_secs(5),
            },
        ] {
            let line = message.encode(&identity, 1_764_047_000_123);
            assert_eq!(Message::decode(line.as_bytes(), &identity), Ok(message), "{line}");
        }
    }

    #[test]
    fn refuses_other_instances_and_earlier_incarnations() {
        let identity = Identity::named("app-1");
        let earlier = Identity::named("app-1");
        let other = Identity {
            instance: "app-2".to_owned(),
            incarnation: identity.incarnation,
        };
        assert_ne!(identity.incarnation, earlier.incarnation);
        for foreign in [earlier, other] {
            let line = heartbeat(3, 4).encode(&foreign, 0);
            assert_eq!(
                Message::decode(line.as_bytes(), &identity),
                Err(Unusable::Foreign)
            );
        }
    }

    #[test]
    fn refuses_what_is_no_message() {
        let identity = Identity::named("app-1");
        let good = heartbeat(3, 4).encode(&identity, 5);
        for line in [
            "".to_owned(),
            "hello".to_owned(),
            good.replace("pg1", "pg2"),
            good.replace(" hb ", " beat "),
            good.replace(" 3 ", " -3 "),
            good.replace(" 3 ", " 99999999999999999999 "),
            good.split(' ').take(5).collect::<Vec<_>>().join(" "),
        ] {
            assert_eq!(
                Message::decode(line.as_bytes(), &identity),
                Err(Unusable::Malformed),
                "{line}"
            );
        }
        assert_eq!(
            Message::decode(&[0xff, 0xfe], &identity),
            Err(Unusable::Malformed)
        );
    }

    #[test]
    fn generated_instances_differ() {
        assert_ne!(Identity::generate().instance(), Identity::generate().instance());
    }

    proptest! {
        #[test]
        fn never_panics_on_any_line(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::decode(&line, &Identity::named("x"));
        }

        /// Against a plain set of what was heard, with everything more than 63 behind the newest taken as heard.
        #[test]
        fn hears_each_number_once(seqs in proptest::collection::vec(0u64..200, 1..300)) {
            let mut heard = Heard::default();
            let mut naive = std::collections::BTreeSet::new();
            for seq in seqs {
                let newest = naive.last().copied().unwrap_or(0);
                let expected = seq != 0 && seq + 64 > newest && naive.insert(seq);
                prop_assert_eq!(heard.first_time(seq), expected, "{} after {:?}", seq, naive);
            }
        }
    }
}
