//! Commands too wide for a script: `redis.call(unpack(…))` takes some 8 000 values at most.
//!
//! The common ones take a list of equal things, so they are applied as several narrower commands of the same meaning.

use bytes::Bytes;

/// Most arguments of one command in a script; Lua's C stack holds 8 000 values, some of them its own.
const MOST: usize = 7_000;

/// The command itself, or the narrower commands that say the same, or nothing when it cannot be said.
pub(super) fn narrow(args: Vec<Bytes>) -> Option<Vec<Vec<Bytes>>> {
    if args.len() <= MOST {
        return Some(vec![args]);
    }
    // (arguments that every part repeats, arguments that belong together)
    let (head, stride) = match args[0].to_ascii_uppercase().as_slice() {
        b"DEL" | b"UNLINK" => (1, 1),
        b"MSET" => (1, 2),
        b"LPUSH" | b"RPUSH" | b"SADD" | b"SREM" | b"HDEL" | b"ZREM" | b"PFADD" => (2, 1),
        b"HSET" | b"HMSET" => (2, 2),
        _ => return None,
    };
    let (prefix, items) = args.split_at(head);
    let width = (MOST - head) / stride * stride;
    Some(items.chunks(width).map(|part| [prefix, part].concat()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize, first: &str) -> Vec<Bytes> {
        let mut all = vec![
            Bytes::copy_from_slice(first.as_bytes()),
            Bytes::from_static(b"key"),
        ];
        all.extend((0..count).map(|n| Bytes::from(n.to_string())));
        all
    }

    #[test]
    fn parts_say_the_same_in_the_same_order() {
        let whole = words(20_000, "hset");
        let parts = narrow(whole.clone()).expect("HSET splits");
        assert!(parts.len() > 2);
        for part in &parts {
            assert!(
                part.len() <= MOST && part.len().is_multiple_of(2),
                "pairs stay together"
            );
            assert_eq!(part[..2], whole[..2]);
        }
        let again: Vec<Bytes> = parts.iter().flat_map(|part| part[2..].to_vec()).collect();
        assert_eq!(again, whole[2..]);
    }

    #[test]
    fn what_has_no_known_list_is_refused_only_when_too_wide() {
        assert_eq!(narrow(words(10, "EVALISH")).map(|parts| parts.len()), Some(1));
        assert_eq!(narrow(words(20_000, "EVALISH")), None);
    }
}
