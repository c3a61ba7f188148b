use bytes::Bytes;

use super::*;

fn start() -> Position {
    Position {
        run: "run".to_owned(),
        id: "id".to_owned(),
        offset: 100,
        db: 0,
    }
}

fn unit(end: u64, effects: usize) -> Unit {
    let effect = Effect {
        db: 1,
        args: vec![Bytes::from_static(b"INCR"), Bytes::from_static(b"key")],
    };
    Unit {
        effects: vec![effect; effects],
        end,
        db: 1,
        ..Unit::default()
    }
}

#[test]
fn units_without_effects_move_the_place_and_nothing_is_written() {
    let now = Instant::now();
    let mut outbox = Outbox::new(start(), None);
    outbox.push(unit(114, 0), now);
    outbox.push(unit(128, 0), now);
    assert!(outbox.take_due(now, Duration::ZERO).is_none());
    assert_eq!((outbox.acked.offset, outbox.recorded.clone()), (128, None));
    assert_eq!(outbox.bytes, 0);
}

#[test]
fn the_place_moves_only_with_the_acknowledgement() {
    let now = Instant::now();
    let mut outbox = Outbox::new(start(), Some(start()));
    outbox.push(unit(130, 1), now);
    outbox.push(unit(144, 0), now);
    let batch = outbox.take_due(now, Duration::ZERO).expect("one effect is due");
    assert_eq!(
        (batch.after.offset, batch.after.db, batch.effects.len()),
        (144, 1, 1)
    );
    assert_eq!(
        (outbox.acked.offset, outbox.recorded.clone()),
        (100, Some(start()))
    );
    outbox.done();
    assert_eq!((outbox.acked.offset, outbox.recorded), (144, Some(batch.after)));
}

#[test]
fn batches_are_bounded_and_never_split_a_transaction() {
    let now = Instant::now();
    let mut outbox = Outbox::new(start(), None);
    outbox.push(unit(200, BATCH.0 - 1), now);
    outbox.push(unit(300, 2), now);
    outbox.push(unit(400, 3 * BATCH.0), now);
    let sizes: Vec<usize> = std::iter::from_fn(|| {
        let batch = outbox.take_due(now, Duration::ZERO)?;
        outbox.done();
        Some(batch.effects.len())
    })
    .collect();
    assert_eq!(sizes, [BATCH.0 - 1, 2, 3 * BATCH.0]);
}

#[test]
fn a_delay_holds_each_unit_back_and_its_end_lets_them_go() {
    let (now, delay) = (Instant::now(), Duration::from_millis(50));
    let mut outbox = Outbox::new(start(), None);
    outbox.push(unit(130, 1), now);
    outbox.push(unit(160, 1), now + delay / 2);
    assert!(outbox.take_due(now + delay / 2, delay).is_none());
    assert_eq!(outbox.next_due(delay), Some(now + delay));
    assert_eq!(
        outbox
            .take_due(now + delay, delay)
            .map(|batch| batch.after.offset),
        Some(130)
    );
    outbox.done();
    assert_eq!(
        outbox
            .take_due(now + delay, Duration::ZERO)
            .map(|batch| batch.after.offset),
        Some(160)
    );
}

#[test]
fn the_sources_question_is_answered_once_and_not_before_it_is_true() {
    let now = Instant::now();
    let mut outbox = Outbox::new(start(), None);
    outbox.push(unit(130, 1), now);
    outbox.push(
        Unit {
            wants_ack: true,
            ..unit(167, 0)
        },
        now,
    );
    assert!(!outbox.ack_owed());
    assert!(outbox.take_due(now, Duration::ZERO).is_some());
    assert!(!outbox.ack_owed(), "sent is not acknowledged");
    outbox.done();
    assert!(outbox.ack_owed());
    assert!(!outbox.ack_owed());
}
