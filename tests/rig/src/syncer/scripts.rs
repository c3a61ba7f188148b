//! The scripts that run on the servers. Each is atomic, and whatever it writes stays out of the server's own stream
//! (`redis.set_repl(redis.REPL_AOF)`): that is why nothing loops.
//!
//! None of them declares flags (`#!lua`), so that the server judges each write and not the whole script; see
//! [`super::server`] for what is done when it refuses.

/// Applies effects if the books stand where the caller believes.
///
/// ARGV: field, expected value (empty: none), new value, then for each effect: database, number of words, words.
/// Returns `OK`, number of failed effects, the first failure; or `MOVED` and what the books say.
pub(super) const APPLY: &str = r"
redis.set_repl(redis.REPL_AOF)
redis.call('SELECT', 15)
local seen = redis.call('HGET', 'rig:applied', ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
redis.call('HSET', 'rig:applied', ARGV[1], ARGV[3])
local db, failed, first, at = '15', 0, '', 4
local function fail(reply)
  failed = failed + 1
  if first == '' then first = reply.err end
end
while at <= #ARGV do
  local last = at + 1 + ARGV[at + 1]
  local reply = {}
  if ARGV[at] ~= db then
    reply = redis.pcall('SELECT', ARGV[at])
    if not reply.err then db = ARGV[at] end
  end
  if not reply.err then reply = redis.pcall(unpack(ARGV, at + 2, last)) end
  if type(reply) == 'table' and reply.err then fail(reply) end
  at = last + 1
end
-- Again, since an effect may have emptied the database of the books.
redis.call('SELECT', 15)
redis.call('HSET', 'rig:applied', ARGV[1], ARGV[3])
return {'OK', failed, first}
";

/// Reads the stream's place and the books in one moment.
pub(super) const BOOKS: &str = r"
redis.call('SELECT', 15)
return {redis.call('INFO', 'server') .. redis.call('INFO', 'replication'), redis.call('HGETALL', 'rig:applied')}
";

/// As `BOOKS`, and every key with it: database, key, expiry (ms since 1970, 0: none), DUMP.
pub(super) const SNAPSHOT: &str = r"
redis.call('SELECT', 15)
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
local books, keys = redis.call('HGETALL', 'rig:applied'), {}
for db in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+):') do
  redis.call('SELECT', db)
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      local dump = not (db == '15' and string.sub(key, 1, 4) == 'rig:') and redis.call('DUMP', key)
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
redis.call('SELECT', 15)
local seen = redis.call('HGET', 'rig:applied', ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
local run, id, offset, db = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local info = redis.call('INFO', 'server') .. redis.call('INFO', 'replication')
if not string.find(info, 'run_id:' .. run, 1, true) or not string.find(info, 'master_replid:' .. id, 1, true) then
  return {'MOVED', 'this server is another one now'}
end
local now = tonumber(string.match(info, 'master_repl_offset:(%d+)'))
redis.call('HSET', 'rig:applied', 'rebuilt', run)
for used in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+):') do
  redis.call('SELECT', used)
  redis.call('FLUSHDB')
end
redis.call('SELECT', 15)
redis.call('HSET', 'rig:applied', 'rebuilt', run)
if now > offset then
  redis.call('HSET', 'rig:applied', 'debt', run .. ' ' .. id .. ' ' .. ARGV[5] .. ' ' .. db, 'debt-until', now)
end
local keys = 8 + 2 * ARGV[7]
for at = 8, keys - 1, 2 do redis.call('HSET', 'rig:applied', ARGV[at], ARGV[at + 1]) end
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
redis.call('SELECT', 15)
local seen = redis.call('HGET', 'rig:applied', ARGV[1]) or ''
if seen ~= ARGV[2] then return {'MOVED', seen} end
redis.call('HSET', 'rig:applied', ARGV[1], ARGV[3])
for at = 4, #ARGV, 4 do
  redis.call('SELECT', ARGV[at])
  redis.pcall('RESTORE', ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], 'ABSTTL')
end
return {'OK', 0, ''}
";

/// Strikes a paid debt from the books. ARGV: the value it must have.
pub(super) const SETTLE: &str = r"
redis.set_repl(redis.REPL_AOF)
redis.call('SELECT', 15)
if redis.call('HGET', 'rig:applied', 'debt') ~= ARGV[1] then return {'MOVED', ''} end
redis.call('HDEL', 'rig:applied', 'debt', 'debt-until')
return {'OK', 0, ''}
";

/// Fills database 15 with as many keys as ARGV says, so that loading takes its time; they never leave this server.
pub(crate) const FILL: &str = r"
redis.set_repl(redis.REPL_AOF)
redis.call('SELECT', 15)
for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'rig:filler:' .. n, string.rep('x', 120)) end
return 0
";

/// Removes what `FILL` made.
pub(crate) const UNFILL: &str = r"
redis.set_repl(redis.REPL_AOF)
redis.call('SELECT', 15)
local cursor = '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', 'rig:filler:*', 'COUNT', 1000)
  cursor = page[1]
  for _, key in ipairs(page[2]) do redis.call('DEL', key) end
until cursor == '0'
return 0
";
