//! What scripts say: every group of commands, right, odd and wrong.
//!
//! Words in capitals are filled in by `script.rs`, `{P}` is the script's own prefix, `\s` a blank, and `~mask` announces an answer
//! that cannot agree.

/// Commands, by group, each with its weight.
pub(super) const DATA: &[(usize, &str)] = &[
    (
        6,
        "set STR VAL; get STR; get KEY; append STR SHORT; strlen STR; incr STR; incrby STR INT; decr STR; \
         decrby STR INT; incrbyfloat STR 1.5; mset STR SHORT STR SHORT; mget STR STR KEY; \
         msetnx STR SHORT STR SHORT; setnx STR SHORT; getset STR SHORT; getdel STR; getrange STR 1 4; \
         setrange STR 3 SHORT; set STR SHORT exat 33177117420; set STR SHORT nx; set STR SHORT xx get; \
         getex STR persist; set STR SHORT pxat 33177117420000 get; psetex STR 0 SHORT; substr STR 0 3; \
         lcs STR STR; set STR SHORT badoption; set STR; get; incrby STR notanumber; setex STR 0 SHORT",
    ),
    (
        4,
        "lpush LST VAL SHORT; rpush LST SHORT SHORT SHORT; lpop LST; rpop LST 2; llen LST; lrange LST 0 -1; \
         lindex LST INT; lset LST 0 SHORT; linsert LST before SHORT SHORT; lrem LST 0 SHORT; ltrim LST 0 20; \
         lmove LST LST left right; rpoplpush LST LST; lpos LST SHORT; lmpop 2 LST LST left; \
         lpushx LST SHORT; rpushx LST SHORT; lrange KEY 0 5; lset LST 99 SHORT",
    ),
    (
        4,
        "hset HSH FLD SHORT FLD SHORT; hget HSH FLD; hgetall HSH; hmget HSH FLD FLD; hdel HSH FLD; \
         hincrby HSH FLD INT; hincrbyfloat HSH FLD 0.5; hkeys HSH; hvals HSH; hlen HSH; hexists HSH FLD; \
         hsetnx HSH FLD SHORT; hstrlen HSH FLD; hrandfield HSH 0; hscan HSH 0; hscan HSH 0 count 100; \
         hmset HSH FLD SHORT; hset HSH FLD; hgetall KEY",
    ),
    (
        4,
        "sadd SET NUM NUM NUM; srem SET NUM; smembers SET; sismember SET NUM; smismember SET NUM NUM; \
         scard SET; smove SET SET NUM; sinter SET SET; sunion SET SET; sdiff SET SET; \
         sinterstore SET SET SET; sunionstore SET SET SET; sdiffstore SET SET SET; sintercard 2 SET SET; \
         sscan SET 0 count 100; spop SET 1000; srandmember SET 0; smembers KEY; sadd SET",
    ),
    (
        4,
        "zadd ZST NUM FLD NUM FLD; zadd ZST nx NUM FLD; zadd ZST gt ch NUM FLD; zadd ZST incr NUM FLD; \
         zscore ZST FLD; zmscore ZST FLD FLD; zrange ZST 0 -1 withscores; \
         zrange ZST 0 100 byscore limit 0 2; zrange ZST - + bylex; zrevrange ZST 0 -1; \
         zrangebyscore ZST -inf +inf withscores; zrank ZST FLD; zrevrank ZST FLD; zcard ZST; \
         zcount ZST 0 50; zlexcount ZST - +; zincrby ZST INT FLD; zrem ZST FLD; zpopmin ZST; zpopmax ZST 2; \
         zunion 2 ZST ZST withscores; zinter 2 ZST ZST; zdiff 2 ZST ZST withscores; \
         zunionstore ZST 2 ZST ZST; zinterstore ZST 2 ZST ZST weights 2 3; zdiffstore ZST 2 ZST ZST; \
         zrangestore ZST ZST 0 2; zremrangebyrank ZST 0 0; zremrangebyscore ZST 90 99; zintercard 2 ZST ZST; \
         zmpop 1 ZST min; zscan ZST 0; zadd ZST x FLD; zrandmember ZST 0; zadd ZST nx xx NUM FLD",
    ),
    (
        3,
        "xadd STM * FLD SHORT; xadd STM 1-* FLD SHORT; xadd STM 5-5 FLD SHORT; xadd STM NUM-NUM FLD SHORT; \
         xlen STM; xrange STM 0 99; xrevrange STM 99 0 count 2; xread count 2 streams STM 0; \
         xread streams STM STM 99999999999999 99999999999999; xdel STM NUM-NUM; xtrim STM maxlen 5; \
         xgroup create STM grp 0 mkstream; xgroup create STM grp 0; xgroup destroy STM grp; \
         xgroup setid STM grp 0; xgroup createconsumer STM grp ann; xgroup delconsumer STM grp ann; \
         xreadgroup group grp ann count 1 streams STM 0; xack STM grp NUM-NUM; xpending STM grp; \
         xinfo groups STM; xsetid STM 99-0; xclaim STM grp ann 0 NUM-NUM justid; \
         xreadgroup group no ann streams STM >",
    ),
    (
        2,
        "geoadd GEO 13.361389 38.115556 FLD 15.087269 37.502669 FLD; geopos GEO FLD; geodist GEO FLD FLD km; \
         geohash GEO FLD FLD; geosearch GEO fromlonlat 15 37 byradius 200 km asc withdist; \
         geosearchstore GEO GEO fromlonlat 15 37 bybox 400 400 km; georadius GEO 15 37 200 km asc; \
         georadius_ro GEO 15 37 200 km asc withcoord; geoadd GEO 999 1 FLD",
    ),
    (
        2,
        "setbit BIT NUM 1; getbit BIT NUM; bitcount BIT; bitpos BIT 1; bitop and BIT BIT BIT; \
         bitop not BIT BIT; bitfield BIT set u8 0 NUM get u4 0; bitfield_ro BIT get u8 0; setbit BIT NUM 7",
    ),
    (
        2,
        "pfadd HLL SHORT SHORT; pfcount HLL; pfcount HLL HLL; pfmerge HLL HLL HLL; pfcount KEY",
    ),
    (
        5,
        "del KEY; unlink KEY KEY; exists KEY KEY; type KEY; rename KEY {P}renamed; renamenx KEY {P}renamed; \
         rename {P}renamed KEY; copy STR STR replace; copy KEY {P}renamed; touch KEY KEY; persist KEY; \
         expireat KEY 33177117420; pexpireat KEY 33177117420000 nx; expiretime KEY; pexpiretime KEY; \
         expire KEY -1; expire KEY notanumber; object encoding KEY; object refcount STR; object help; \
         object nosuch KEY; dump STR; restore STR 0 garbage; keys {P}a; scan 0 match {P}a count 1000000; \
         scan notacursor; sort SET; sort SET desc limit 0 3; sort LST alpha; sort_ro SET by nosort; \
         sort SET store LST; sort LST; move STR 3; randomkey extra; wait 0 1; ttl {P}none; pttl {P}none",
    ),
    (
        3,
        "eval LUA 1 STR SHORT; eval LUA 0; eval_ro LUA 1 STR SHORT; evalsha SHA 1 STR SHORT; \
         evalsha_ro SHA 0; evalsha ffffffffffffffffffffffffffffffffffffffff 0; evalsha short 0; \
         script load LUA; script exists SHA ffffffffffffffffffffffffffffffffffffffff; eval BADLUA 0; \
         eval BADLUA notanumber; script help; script nosuch; function load FUN; function load replace FUN; \
         fcall {P}f 1 STR SHORT; fcall_ro {P}r 0; fcall {P}none 0; function delete {P}lib; \
         function list libraryname {P}nolib; function load BADLUA; function nosuch",
    ),
    (
        3,
        "ping; ping SHORT; echo VAL; echo; ping a b; time extra; config get maxmemory-samples; \
         config get nosuchparameter*; config set nosuchparameter 1; config; config nosuch; command count; \
         command getkeys set a b; command info get; command list filterby pattern geod*; lolwut version x; \
         debug sleep 0; debug nosuch; acl whoami; acl cat nosuch; acl dryrun alice get a; acl genpass x; \
         memory usage; memory nosuch; latency help; slowlog nosuch; nosuchcommand; nosuchcommand a b VAL; \
         no\\such; get a b; object; client; xinfo; cluster info; readonly; readwrite; asking; swapdb 0; \
         role extra; publish CHN SHORT; spublish CHN SHORT; pubsub numsub {P}x; pubsub channels {P}nothing*; \
         pubsub shardnumsub {P}x; publish CHN; info nosuchsection; failover x",
    ),
    (
        2,
        "blpop LST {P}empty 0.005; brpop LST 0.005; blmove LST LST left left 0.005; blmpop 0.005 1 LST left; \
         brpoplpush LST LST 0.005; bzpopmin ZST 0.005; bzpopmax ZST 0.005; bzmpop 0.005 1 ZST min; \
         xread block 5 streams STM 0; xread block 5 streams {P}none $; blpop KEY -1; blpop LST notanumber; \
         blpop LST; xreadgroup group grp ann block 5 streams STM >; xread block x streams STM 0",
    ),
];

/// What changes the connection, and what needs one of its own.
pub(super) const STATE: &[(usize, &str)] = &[
    (
        6,
        "multi; multi; multi; multi extra; exec; exec; exec; exec extra; discard; discard extra; \
         watch KEY KEY; watch KEY; watch; unwatch; unwatch extra",
    ),
    (
        4,
        "subscribe CHN; subscribe CHN CHN; psubscribe {P}c*; ssubscribe CHN; unsubscribe; unsubscribe CHN; \
         punsubscribe; sunsubscribe; sunsubscribe CHN; punsubscribe {P}c* CHN; subscribe; publish CHN SHORT; \
         publish CHN SHORT; spublish CHN VAL; unsubscribe CHN CHN CHN",
    ),
    (
        3,
        "~hello; ~hello 2; ~hello 3; ~hello 3; ~hello 3 setname {P}name; ~hello 2 auth alice wonder; \
         ~hello 3 auth alice wonder setname SHORT; hello 3 auth alice wrong; hello 3 auth alice; hello 4; \
         hello x; hello 3 nosuch; hello 3 setname bad\\sname; hello 2 auth bob builder setname bad\\sname; \
         hello 3 setname {P}n auth alice wrong; hello 3 auth alice wonder nosuch; hello 03",
    ),
    (
        3,
        "auth alice wonder; auth bob builder; auth carol anything; auth alice wrong; auth nobody x; \
         auth wonder; auth off x; auth default x; auth; auth a b c; acl whoami; acl whoami; auth kim k; \
         auth tom t",
    ),
    (
        3,
        "select 0; select 1; select 7; select 15; select 16; select -1; select x; select; select +3; \
         select 03",
    ),
    (
        3,
        "client setname {P}n; client setname SHORT; client setname bad\\sname; client setname EMPTY; \
         client getname; client getname; client setinfo lib-name {P}lib; client setinfo lib-ver 1.2; \
         client setinfo nosuch 1; ~info client info; ~any client id; ~any client list; client nosuch; \
         client no-evict on; client no-evict off; client no-evict x; client getredir; client trackinginfo; \
         client help; client kill id notanumber; client unblock 999999999; client no-touch on; \
         client list type nosuch",
    ),
    (
        2,
        "client tracking on; client tracking off; client tracking on noloop; client tracking on optin; \
         client tracking on optout; client tracking on optin optout; client tracking x; client tracking; \
         client tracking on redirect 99999999; client tracking on prefix {P}; client caching yes; \
         client caching no; client caching x",
    ),
    (
        2,
        "client reply off; client reply on; client reply skip; client reply x; client reply; \
         client reply off extra",
    ),
    (1, "reset; reset extra"),
    (
        1,
        "~any time; ~any dbsize; ~any randomkey; ~any info server; ~any lastsave; ~any object idletime STR; \
         ~any function list libraryname {P}lib; ~any memory usage STR; ~any acl genpass",
    ),
    (
        1,
        "debug protocol string; debug protocol integer; debug protocol double; debug protocol null; \
         debug protocol array; debug protocol set; debug protocol map; debug protocol attrib; \
         debug protocol bignum; debug protocol true; debug protocol false; debug protocol verbatim",
    ),
];

/// A script; its name is the word `SHA`.
pub(super) const LUA: &str = "return {KEYS[1], ARGV[1], 7, redis.call('ping'), false, {1, {2}}} -- {P}";

/// None.
pub(super) const BADLUA: &str = "this is no lua";

/// A library of functions.
pub(super) const FUN: &str = "#!lua name={P}lib\nredis.register_function('{P}f', function(k, a) return {k[1], a[1]} end)\n\
    redis.register_function{function_name='{P}r', callback=function() return 5 end, flags={'no-writes'}}";

/// Requests that are no arrays of strings, or empty.
pub(super) const RAW: &[&str] = &[
    "*0\r\n",
    "*-1\r\n",
    "\r\n",
    "\n",
    "PING\r\n",
    "ping\n",
    "  get {P}a  \r\n",
    "SET {P}a \"x y\\x41\\n\"\r\n",
    "echo 'a b'\r\n",
    "  \r\n",
    "set {P}a \"\"\r\n",
    "nosuch inline\r\n",
    "multi\r\n",
    "exec\r\n",
    "*1\r\n$4\r\nping\r\n",
];

/// After these the server closes.
pub(super) const LAST: &[&str] = &[
    "QUIT\r\n",
    "*1\r\n$4\r\nquit\r\n",
    "*1\r\n:1\r\n",
    "*x\r\n",
    "*1\r\n$-5\r\n",
    "echo \"unbalanced\r\n",
    "*2\r\n$4\r\necho\r\n*1\r\n",
];
