//! The scripts that run on the servers. Each is atomic, and whatever it writes stays out of the server's own stream
//! (`redis.set_repl(redis.REPL_AOF)`): that is why nothing loops.
//!
//! None of them declares flags (`#!lua`), so that the server judges each write and not the whole script; see
//! [`super::server`] for what is done when it refuses.
//!
//! Each runs after a prelude of its cell's own, which leaves it in the database of the books: 15, or 0 on a cluster's
//! nodes, which have no other. `KEYS[1]` is the books' key.

use std::sync::Arc;

use redis::Cmd;

use super::scope::books_key;
use crate::slots::SlotRange;

/// How every script of the rig begins, in MONITOR's eyes too.
pub(super) const MARK: &str = "-- rig";

/// What scripts of a cell need before they begin.
#[derive(Clone, Debug)]
pub(super) struct BooksOf {
    key: Arc<str>,
    prelude: Arc<str>,
}

impl BooksOf {
    pub(super) fn cell(cell: SlotRange) -> Self {
        Self {
            key: books_key(cell).into(),
            prelude: prelude(cell).into(),
        }
    }

    /// `flags` are those of `#!lua`: none for a script that the server judges write by write.
    pub(super) fn eval(&self, command: &str, flags: Option<&str>, script: &str) -> Cmd {
        let flags = flags.map_or_else(String::new, |flags| format!("#!lua flags={flags}\n"));
        let mut eval = redis::cmd(command);
        eval.arg(format!("{flags}{}{script}", self.prelude));
        eval.arg(1).arg(&*self.key);
        eval
    }
}

/// A script of no cell, without keys.
pub(crate) fn of_server(script: &str) -> String {
    prelude(SlotRange::ALL) + script
}

/// `mine(db, key)`: the key is in the cell and none of the rig's; `flush(db)`, `flush_all()`: delete all that is mine.
fn prelude(cell: SlotRange) -> String {
    let SlotRange { first, last } = cell;
    let whole = cell == SlotRange::ALL;
    format!("{MARK}\nlocal first, last, whole = {first}, {last}, {whole}{PRELUDE}")
}

const PRELUDE: &str = r"
local home = redis.pcall('SELECT', 15).err and 0 or 15
redis.call('SELECT', home)
local function slot(key)
  local open = string.find(key, '{', 1, true)
  local close = open and string.find(key, '}', open + 1, true)
  if close and close > open + 1 then key = string.sub(key, open + 1, close - 1) end
  local crc = 0
  for at = 1, #key do
    crc = bit.bxor(crc, bit.lshift(string.byte(key, at), 8))
    for _ = 1, 8 do
      local carry = bit.band(crc, 0x8000) ~= 0
      crc = bit.band(bit.lshift(crc, 1), 0xffff)
      if carry then crc = bit.bxor(crc, 0x1021) end
    end
  end
  return crc % 16384
end
local function mine(db, key)
  if tonumber(db) == home and string.sub(key, 1, 4) == 'rig:' then return false end
  if whole then return true end
  local at = slot(key)
  return first <= at and at <= last
end
local function flush(db)
  redis.call('SELECT', db)
  if whole then
    redis.call('FLUSHDB')
    return
  end
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      if mine(db, key) then redis.call('DEL', key) end
    end
  until cursor == '0'
end
local function flush_all()
  for used in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+):') do flush(used) end
end
";

/// Applies effects if the books stand where the caller believes.
///
/// ARGV: field, expected value (empty: none), new value, then for each effect: database, number of words, words.
/// Returns `OK`, number of failed effects, the first failure; or `MOVED` and what the books say.
pub(super) const APPLY: &str = r"
redis.set_repl(redis.REPL_AOF)
local seen = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
local db, failed, refused, at = tostring(home), 0, '', 4
local function fail(reply)
  failed = failed + 1
  if refused == '' then refused = reply.err end
end
while at <= #ARGV do
  local last = at + 1 + ARGV[at + 1]
  local reply = {}
  if ARGV[at] ~= db then
    reply = redis.pcall('SELECT', ARGV[at])
    if not reply.err then db = ARGV[at] end
  end
  if reply.err then
    -- Its database does not exist here.
  elseif ARGV[at + 2] == 'rig:flushdb' then
    flush(db)
  elseif ARGV[at + 2] == 'rig:flushall' then
    flush_all()
    redis.call('SELECT', db)
  else
    reply = redis.pcall(unpack(ARGV, at + 2, last))
  end
  if type(reply) == 'table' and reply.err then fail(reply) end
  at = last + 1
end
-- Again, since an effect may have emptied the database of the books.
redis.call('SELECT', home)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return {'OK', failed, refused}
";

/// Reads the stream's place and the books in one moment.
pub(super) const BOOKS: &str = r"
return {redis.call('INFO', 'server') .. redis.call('INFO', 'replication'), redis.call('HGETALL', KEYS[1])}
";

/// As `BOOKS`, and every key with it: database, key, expiry (ms since 1970, 0: none), DUMP.
pub(super) const SNAPSHOT: &str = r"
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
local books, keys = redis.call('HGETALL', KEYS[1]), {}
for db in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+):') do
  redis.call('SELECT', db)
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      local dump = mine(db, key) and redis.call('DUMP', key)
      if dump then
        keys[#keys + 1] = db
        keys[#keys + 1] = key
        keys[#keys + 1] = tostring(math.max(0, redis.call('PEXPIRETIME', key)))
        keys[#keys + 1] = dump
      end
    end
  until cursor == '0'
end
return {info, books, keys}
";

/// Makes this server what the snapshot says, books included, and notes as debt its own writes since `own`.
///
/// ARGV: field and expected value of the source (empty: none), own run, own id, own offset (from where its writes are
/// missing in the snapshot), own database there, number of fields, fields and values, then the snapshot's keys.
/// Returns `OK`; or `MOVED`.
pub(super) const ADOPT: &str = r"
redis.set_repl(redis.REPL_AOF)
local seen = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
local run, id, offset, db = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
if not string.find(info, 'run_id:' .. run, 1, true) or not string.find(info, 'master_replid:' .. id, 1, true) then
  return {'MOVED', 'this server is another one now'}
end
local now = tonumber(string.match(info, 'master_repl_offset:(%d+)'))
redis.call('HSET', KEYS[1], 'rebuilt', run)
flush_all()
redis.call('SELECT', home)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'rebuilt', run)
if now > offset then
  redis.call('HSET', KEYS[1], 'debt', run .. ' ' .. id .. ' ' .. ARGV[5] .. ' ' .. db, 'debt-until', now)
end
local keys = 8 + 2 * ARGV[7]
for at = 8, keys - 1, 2 do redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
for at = keys, #ARGV, 4 do
  redis.call('SELECT', ARGV[at])
  redis.call('RESTORE', ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], 'REPLACE', 'ABSTTL')
end
return {'OK', 0, ''}
";

/// Adds what this server lacks of the snapshot; a key that exists stays as it is.
///
/// ARGV: field, expected value (empty: none), new value, then the snapshot's keys. Returns as `APPLY`.
pub(super) const UNITE: &str = r"
redis.set_repl(redis.REPL_AOF)
local seen = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
for at = 4, #ARGV, 4 do
  redis.call('SELECT', ARGV[at])
  redis.pcall('RESTORE', ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], 'ABSTTL')
end
return {'OK', 0, ''}
";

/// Strikes a paid debt from the books. ARGV: the value it must have.
pub(super) const SETTLE: &str = r"
redis.set_repl(redis.REPL_AOF)
if redis.call('HGET', KEYS[1], 'debt') ~= ARGV[1] then return {'MOVED', ''} end
redis.call('HDEL', KEYS[1], 'debt', 'debt-until')
return {'OK', 0, ''}
";

/// Copies the books to each key that ARGV names.
pub(super) const SPLIT: &str = r"
redis.set_repl(redis.REPL_AOF)
local books = redis.call('HGETALL', KEYS[1])
for _, key in ipairs(ARGV) do
  if key ~= KEYS[1] and #books > 0 then redis.call('HSET', key, unpack(books)) end
end
return {'OK', 0, ''}
";

/// Strikes the field that ARGV names from the books.
pub(super) const FORGET: &str = r"
redis.set_repl(redis.REPL_AOF)
redis.call('HDEL', KEYS[1], ARGV[1])
return {'OK', 0, ''}
";

/// Moves keys of this node to another one, and says how many there were. ARGV: slot, host, port, then words of MIGRATE.
pub(crate) const MOVE_KEYS: &str = r"
redis.set_repl(redis.REPL_AOF)
local keys = redis.call('CLUSTER', 'GETKEYSINSLOT', ARGV[1], 100)
if #keys > 0 then
  local words = {'MIGRATE', ARGV[2], ARGV[3], '', 0, 5000}
  for at = 4, #ARGV do words[#words + 1] = ARGV[at] end
  words[#words + 1] = 'KEYS'
  for _, key in ipairs(keys) do words[#words + 1] = key end
  redis.call(unpack(words))
end
return #keys
";

/// Fills the books' database with as many keys as ARGV says, under a tag that is in one of the server's own slots, so that
/// loading takes its time; they never leave this server.
pub(crate) const FILL: &str = r"
redis.set_repl(redis.REPL_AOF)
for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'rig:filler:{' .. ARGV[2] .. '}:' .. n, string.rep('x', 120)) end
return 0
";

/// Removes what `FILL` made.
pub(crate) const UNFILL: &str = r"
redis.set_repl(redis.REPL_AOF)
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', 'rig:filler:*', 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do redis.call('DEL', key) end
until cursor == '0'
return 0
";
