//! Several replies become one: of the parts of a split request, or of all shards.
//!
//! Replies may come in any order; the joined one does not depend on it. An error wins over everything: that of the first
//! part that has one, once all have answered, so that nothing of the command is under way any more when the application
//! reads on. What is kept meanwhile is one number or one short reply, or, where the answer consists of all replies (MGET,
//! KEYS), those: [`Joiner::bytes`] says how much.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};

use crate::resp::{error_code, reply_aggregate, reply_elements, reply_text};

/// How replies become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// Numbers are added up; of an array each by itself, and what is no number is the first reply's.
    Sum,
    /// The least number; of an array each by itself. For 0 and 1: a logical and.
    Least,
    /// The greatest number; of an array each by itself. For 0 and 1: a logical or.
    Greatest,
    /// The first reply, if all succeed.
    AllSucceeded,
    /// The first success; an error only if all are.
    OneSucceeded,
    /// One array behind the other, in the order of the parts.
    Concat,
    /// The same, without what was there before.
    Union,
}

/// Said when shards answer one command in ways that do not fit together.
const MISFIT: &[u8] = b"-ERR the shards' replies do not fit together\r\n";

/// Takes the replies of all parts and gives back the one for the application.
#[derive(Clone, Debug)]
pub struct Joiner {
    join: Join,
    /// How many have not come.
    missing: usize,
    error: Option<(usize, Bytes)>,
    /// [`Join::AllSucceeded`], [`Join::OneSucceeded`]: the first success so far.
    success: Option<(usize, Bytes)>,
    /// The numbers so far.
    folded: Option<Folded>,
    misfit: bool,
    /// [`Join::Concat`], [`Join::Union`]: the replies, by part.
    kept: Vec<Bytes>,
    bytes: usize,
    /// MGET: where in the reply each element goes, in the order of the parts.
    order: Option<Box<[u32]>>,
}

/// A number, or an array of numbers among other elements.
#[derive(Clone, Debug)]
struct Folded {
    is_array: bool,
    cells: Vec<Cell>,
}

#[derive(Clone, Debug)]
enum Cell {
    Number(i64),
    /// The part that it is of, so that the first one's stays.
    Other(usize, Bytes),
}

impl Joiner {
    /// For the replies of `parts` parts, at least one.
    pub fn new(join: Join, parts: usize) -> Joiner {
        let keeps = matches!(join, Join::Concat | Join::Union);
        Joiner {
            join,
            missing: parts,
            error: None,
            success: None,
            folded: None,
            misfit: false,
            kept: vec![Bytes::new(); if keeps { parts } else { 0 }],
            bytes: 0,
            order: None,
        }
    }

    /// For arrays whose elements, taken in the order of the parts, go to these places.
    pub(super) fn placing(order: Box<[u32]>, parts: usize) -> Joiner {
        Joiner {
            order: Some(order),
            ..Joiner::new(Join::Concat, parts)
        }
    }

    /// How many replies have not come.
    pub fn missing(&self) -> usize {
        self.missing
    }

    /// Bytes of replies that are kept until the last one is in; making one reply of them takes as many again.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole reply to part `part` (from 0) has come, once for each. Returns the joined reply with the last one.
    pub fn put(&mut self, part: usize, reply: &[u8]) -> Option<Bytes> {
        debug_assert!(self.missing > 0, "one reply for each part");
        if error_code(reply).is_some() {
            self.keep_first(part, reply, true);
        } else {
            match self.join {
                Join::Sum | Join::Least | Join::Greatest => self.fold(part, reply),
                Join::AllSucceeded | Join::OneSucceeded => self.keep_first(part, reply, false),
                Join::Concat | Join::Union => {
                    if let Some(kept) = self.kept.get_mut(part) {
                        self.bytes += reply.len();
                        *kept = Bytes::copy_from_slice(reply);
                    }
                }
            }
        }
        self.missing = self.missing.saturating_sub(1);
        (self.missing == 0).then(|| self.finish())
    }

    fn keep_first(&mut self, part: usize, reply: &[u8], is_error: bool) {
        let place = if is_error {
            &mut self.error
        } else {
            &mut self.success
        };
        if place.as_ref().is_none_or(|(first, _)| part < *first) {
            self.bytes += reply.len();
            self.bytes -= place.as_ref().map_or(0, |(_, known)| known.len());
            *place = Some((part, Bytes::copy_from_slice(reply)));
        }
    }

    fn fold(&mut self, part: usize, reply: &[u8]) {
        let is_array = reply_aggregate(reply).is_some();
        let cell = |reply: &[u8]| match integer(reply) {
            Some(number) => Cell::Number(number),
            None => Cell::Other(part, Bytes::copy_from_slice(reply)),
        };
        let cells: Vec<Cell> = if is_array {
            reply_elements(reply).map(cell).collect()
        } else {
            vec![cell(reply)]
        };
        let Some(folded) = &mut self.folded else {
            self.bytes += reply.len();
            self.folded = Some(Folded { is_array, cells });
            return;
        };
        self.misfit |= folded.is_array != is_array || folded.cells.len() != cells.len();
        for (known, new) in folded.cells.iter_mut().zip(cells) {
            match (known, new) {
                (Cell::Number(known), Cell::Number(new)) => {
                    *known = match self.join {
                        Join::Least => new.min(*known),
                        Join::Greatest => new.max(*known),
                        _ => known.saturating_add(new),
                    }
                }
                (known @ Cell::Other(..), new @ Cell::Other(..)) => {
                    if part_of(&new) < part_of(known) {
                        *known = new;
                    }
                }
                _ => self.misfit = true,
            }
        }
    }

    fn finish(&mut self) -> Bytes {
        let succeeded = self.join == Join::OneSucceeded && self.success.is_some();
        if let Some((_, error)) = self.error.take()
            && !succeeded
        {
            return error;
        }
        if self.misfit {
            return Bytes::from_static(MISFIT);
        }
        match self.join {
            Join::Sum | Join::Least | Join::Greatest => self.folded.take().map(|folded| folded.reply()),
            Join::AllSucceeded | Join::OneSucceeded => self.success.take().map(|(_, reply)| reply),
            Join::Concat if let Some(order) = &self.order => place(order, &self.kept),
            Join::Concat => concat(&self.kept),
            Join::Union => union(&self.kept),
        }
        .unwrap_or(Bytes::from_static(MISFIT))
    }
}

impl Folded {
    fn reply(&self) -> Bytes {
        let mut out = BytesMut::new();
        if self.is_array {
            header(&mut out, b'*', self.cells.len() as u64);
        }
        for cell in &self.cells {
            match cell {
                Cell::Number(number) => out.put_slice(format!(":{number}\r\n").as_bytes()),
                Cell::Other(_, bytes) => out.put_slice(bytes),
            }
        }
        out.freeze()
    }
}

fn part_of(cell: &Cell) -> usize {
    match cell {
        Cell::Number(_) => 0,
        Cell::Other(part, _) => *part,
    }
}

fn integer(reply: &[u8]) -> Option<i64> {
    let text = reply.starts_with(b":").then(|| reply_text(reply)).flatten()?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn header(out: &mut BytesMut, kind: u8, count: u64) {
    out.put_u8(kind);
    out.put_slice(count.to_string().as_bytes());
    out.put_slice(b"\r\n");
}

/// What is no array (an OK) stands for all.
fn concat(replies: &[Bytes]) -> Option<Bytes> {
    let first = replies.first()?;
    let Some(kind) = reply_aggregate(first).map(|all| all.kind) else {
        return Some(first.clone());
    };
    let all: Vec<_> = replies
        .iter()
        .filter_map(|reply| reply_aggregate(reply))
        .collect();
    if all.len() != replies.len() || all.iter().any(|one| one.kind != kind) {
        return None;
    }
    let mut out = BytesMut::with_capacity(replies.iter().map(Bytes::len).sum::<usize>() + 16);
    header(&mut out, kind, all.iter().map(|one| one.count).sum());
    all.iter().for_each(|one| out.put_slice(one.body));
    Some(out.freeze())
}

fn union(replies: &[Bytes]) -> Option<Bytes> {
    let kind = reply_aggregate(replies.first()?)?.kind;
    let mut seen = HashSet::new();
    let found: Vec<&[u8]> = replies
        .iter()
        .flat_map(|reply| reply_elements(reply))
        .filter(|element| seen.insert(*element))
        .collect();
    let mut out = BytesMut::with_capacity(found.iter().map(|element| element.len()).sum::<usize>() + 16);
    header(&mut out, kind, found.len() as u64);
    found.iter().for_each(|element| out.put_slice(element));
    Some(out.freeze())
}

fn place(order: &[u32], replies: &[Bytes]) -> Option<Bytes> {
    let mut places: Vec<&[u8]> = vec![&[]; order.len()];
    let mut to = order.iter();
    for element in replies.iter().flat_map(|reply| reply_elements(reply)) {
        *places.get_mut(*to.next()? as usize)? = element;
    }
    if to.next().is_some() {
        return None;
    }
    let mut out = BytesMut::with_capacity(replies.iter().map(Bytes::len).sum::<usize>() + 16);
    header(&mut out, b'*', order.len() as u64);
    places.iter().for_each(|element| out.put_slice(element));
    Some(out.freeze())
}
