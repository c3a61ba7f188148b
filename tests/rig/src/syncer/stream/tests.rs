use super::*;

const STREAM: &[u8] = b"*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n\
*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINCR\r\n$1\r\nb\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$1\r\nm\r\n\
*1\r\n$4\r\nEXEC\r\n*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

fn parse_in_pieces(bytes: &[u8], piece: usize) -> Vec<Unit> {
    let mut parser = Parser::default();
    parser.start_at(1_000, 7);
    let mut units = Vec::new();
    for part in bytes.chunks(piece) {
        parser.buffer.extend_from_slice(part);
        while let Some(unit) = parser.next_unit().expect("a well-formed stream") {
            units.push(unit);
        }
    }
    units
}

fn effect(db: u32, words: &[&'static str]) -> Effect {
    Effect {
        db,
        args: words
            .iter()
            .map(|word| Bytes::from_static(word.as_bytes()))
            .collect(),
    }
}

#[test]
fn units_carry_offsets_databases_and_whole_transactions() {
    let units = parse_in_pieces(STREAM, STREAM.len());
    let effects: Vec<Vec<Effect>> = units.iter().map(|unit| unit.effects.clone()).collect();
    assert_eq!(
        effects,
        [
            vec![],
            vec![effect(3, &["SET", "a", "\r\n"])],
            vec![],
            vec![effect(3, &["INCR", "b"]), effect(0, &["PUBLISH", "c", "m"])],
            vec![],
        ]
    );
    assert_eq!(units.iter().map(|unit| unit.end).collect::<Vec<_>>()[0], 1_023);
    assert_eq!(
        units.last().map(|unit| unit.end),
        Some(1_000 + STREAM.len() as u64),
        "every byte is counted"
    );
    assert_eq!(
        units.iter().map(|unit| unit.wants_ack).collect::<Vec<_>>(),
        [false, false, false, false, true]
    );
    assert_eq!(
        units.iter().map(|unit| unit.db).collect::<Vec<_>>(),
        [3, 3, 3, 0, 0]
    );
}

#[test]
fn every_chunking_gives_the_same_units() {
    let whole = parse_in_pieces(STREAM, STREAM.len());
    for piece in 1..STREAM.len() {
        assert_eq!(parse_in_pieces(STREAM, piece), whole, "pieces of {piece} bytes");
    }
}

#[test]
fn signs_of_life_between_commands_are_not_counted() {
    let mut bytes = b"\n\n".to_vec();
    bytes.extend_from_slice(STREAM);
    bytes.extend_from_slice(b"\n");
    let units = parse_in_pieces(&bytes, 5);
    assert_eq!(
        units.last().map(|unit| unit.end),
        Some(1_000 + STREAM.len() as u64)
    );
}

#[test]
fn garbage_is_an_error_and_not_a_wait() {
    for garbage in [
        "+OK\r\n",
        "*x\r\n",
        "*1\r\n:1\r\n",
        "*1\r\n$99999999999999999999999",
        "*-1\r\n",
        "*1\n$4\nPING\n",
    ] {
        let mut parser = Parser::default();
        parser.buffer.extend_from_slice(garbage.as_bytes());
        let found = parser.next_unit();
        assert!(
            matches!(found, Err(SyncError::Stream(_))),
            "{garbage:?} gave {found:?}"
        );
    }
}
