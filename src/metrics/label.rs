//! The values that labels can have: enums, so that no key, address or error text can become one.

use std::marker::PhantomData;
use std::ops::Index;

use crate::replica::ReplicaId;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in order of [`Label::position`].
    const ALL: &'static [Self];

    /// The label's text in a scrape.
    fn word(self) -> &'static str;

    /// The position in [`Label::ALL`].
    fn position(self) -> usize;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl Label for $name {
            const ALL: &'static [$name] = &[$($name::$variant),+];

            fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// What kind of command was forwarded.
    Class {
        /// The command table marks it read-only.
        Read = "read",
        /// It may change data; unknown commands count here.
        Write = "write",
        /// Connection state, pub/sub, introspection.
        Other = "other",
    }

    /// How a session uses the replica.
    SessionKind {
        /// It pipelines over a link that it shares with others.
        Shared = "shared",
        /// It owns a link.
        Dedicated = "dedicated",
    }

    /// Whose an upstream connection is.
    LinkKind {
        /// Many sessions'.
        Shared = "shared",
        /// One session's.
        Dedicated = "dedicated",
    }

    /// Why a connection was not let in.
    RejectReason {
        /// `listener.max_clients` are connected already.
        MaxClients = "max_clients",
        /// The process or the system is out of file descriptors or memory for another one.
        Resources = "resources",
    }

    /// Why an application's connection ended.
    DisconnectReason {
        /// The application closed it.
        Client = "client",
        /// The application asked for it with QUIT.
        Quit = "quit",
        /// The application broke the protocol.
        ProtocolError = "protocol_error",
        /// The application did not read, and what waits for it passed the limit.
        OutputLimit = "output_limit",
        /// A reply broke off after a part of it had been passed on: nothing but a close is honest then.
        ReplyBroken = "reply_broken",
        /// It tracked with REDIRECT, or listened for such: the replica's client id in it died with the link.
        TrackingLost = "tracking_lost",
        /// Pulsegate is ending.
        Drain = "drain",
        /// The connection to the application failed.
        Error = "error",
    }

    /// How an upstream connect ended.
    ConnectResult {
        /// Connected, handshake done.
        Ok = "ok",
        /// Nobody listens there, or the name did not resolve.
        Refused = "refused",
        /// Not within the connect timeout.
        Timeout = "timeout",
        /// The replica answered the handshake with an error.
        Rejected = "rejected",
        /// The TLS handshake failed.
        Tls = "tls",
        /// Anything else.
        Other = "other",
    }

    /// How a hold ended for a worker.
    HoldEnd {
        /// Commands went on to a replica.
        Resumed = "resumed",
        /// `hold.timeout` passed.
        Expired = "expired",
        /// `hold.max_commands` or `hold.max_bytes` was reached.
        Overflow = "overflow",
        /// The applications that waited went away.
        Disconnected = "disconnected",
    }

    /// The first word of an error reply, where it is one of the known ones.
    ErrorCode {
        /// `-ERR`: the general one.
        Err = "err",
        /// `-WRONGTYPE`
        WrongType = "wrongtype",
        /// `-NOAUTH`
        NoAuth = "noauth",
        /// `-WRONGPASS`
        WrongPass = "wrongpass",
        /// `-NOPERM`
        NoPerm = "noperm",
        /// `-READONLY`
        ReadOnly = "readonly",
        /// `-OOM`
        Oom = "oom",
        /// `-LOADING`
        Loading = "loading",
        /// `-MISCONF`
        MisConf = "misconf",
        /// `-NOREPLICAS`
        NoReplicas = "noreplicas",
        /// `-MASTERDOWN`
        MasterDown = "masterdown",
        /// `-CLUSTERDOWN`
        ClusterDown = "clusterdown",
        /// `-CROSSSLOT`
        CrossSlot = "crossslot",
        /// `-TRYAGAIN`
        TryAgain = "tryagain",
        /// `-MOVED`
        Moved = "moved",
        /// `-ASK`
        Ask = "ask",
        /// `-BUSY`
        Busy = "busy",
        /// `-NOSCRIPT`
        NoScript = "noscript",
        /// `-EXECABORT`
        ExecAbort = "execabort",
        /// `-UNBLOCKED`
        Unblocked = "unblocked",
        /// `-UNAVAILABLE`: Pulsegate's own; not sent anywhere.
        Unavailable = "unavailable",
        /// `-OUTCOMEUNKNOWN`: Pulsegate's own; sent, no reply.
        OutcomeUnknown = "outcomeunknown",
        /// Any other word.
        Other = "other",
    }
}

impl ErrorCode {
    /// The code of an error reply, from its first word; a leading `-` and what follows the word are ignored.
    pub fn of(error: &[u8]) -> ErrorCode {
        let error = error.strip_prefix(b"-").unwrap_or(error);
        let end = error
            .iter()
            .position(|b| !b.is_ascii_uppercase())
            .unwrap_or(error.len());
        let (word, rest) = error.split_at(end);
        // A longer word that only begins like a known one is another word.
        if !matches!(rest.first(), None | Some(b' ' | b'\r' | b'\n')) {
            return ErrorCode::Other;
        }
        match word {
            b"ERR" => ErrorCode::Err,
            b"WRONGTYPE" => ErrorCode::WrongType,
            b"NOAUTH" => ErrorCode::NoAuth,
            b"WRONGPASS" => ErrorCode::WrongPass,
            b"NOPERM" => ErrorCode::NoPerm,
            b"READONLY" => ErrorCode::ReadOnly,
            b"OOM" => ErrorCode::Oom,
            b"LOADING" => ErrorCode::Loading,
            b"MISCONF" => ErrorCode::MisConf,
            b"NOREPLICAS" => ErrorCode::NoReplicas,
            b"MASTERDOWN" => ErrorCode::MasterDown,
            b"CLUSTERDOWN" => ErrorCode::ClusterDown,
            b"CROSSSLOT" => ErrorCode::CrossSlot,
            b"TRYAGAIN" => ErrorCode::TryAgain,
            b"MOVED" => ErrorCode::Moved,
            b"ASK" => ErrorCode::Ask,
            b"BUSY" => ErrorCode::Busy,
            b"NOSCRIPT" => ErrorCode::NoScript,
            b"EXECABORT" => ErrorCode::ExecAbort,
            b"UNBLOCKED" => ErrorCode::Unblocked,
            b"UNAVAILABLE" => ErrorCode::Unavailable,
            b"OUTCOMEUNKNOWN" => ErrorCode::OutcomeUnknown,
            _ => ErrorCode::Other,
        }
    }
}

/// One cell for each value of a label: `by[Class::Read]`.
#[derive(Debug)]
pub struct By<L, T> {
    cells: Box<[T]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, T> By<L, T> {
    /// A cell for each value, made by `cell`.
    pub fn new(mut cell: impl FnMut() -> T) -> By<L, T> {
        By {
            cells: L::ALL.iter().map(|_| cell()).collect(),
            label: PhantomData,
        }
    }

    /// Every value with its cell.
    pub fn iter(&self) -> impl Iterator<Item = (L, &T)> {
        L::ALL.iter().copied().zip(self.cells.iter())
    }
}

impl<L: Label, T> Index<L> for By<L, T> {
    type Output = T;

    fn index(&self, label: L) -> &T {
        &self.cells[label.position()]
    }
}

/// One cell for each replica: `by[replica]`.
#[derive(Debug)]
pub struct PerReplica<T>(Box<[T]>);

impl<T> PerReplica<T> {
    /// A cell for each of `replicas` replicas, made by `cell`.
    pub fn new(replicas: usize, mut cell: impl FnMut() -> T) -> PerReplica<T> {
        PerReplica((0..replicas).map(|_| cell()).collect())
    }

    /// The cells in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}

impl<T> FromIterator<T> for PerReplica<T> {
    fn from_iter<I: IntoIterator<Item = T>>(cells: I) -> PerReplica<T> {
        PerReplica(cells.into_iter().collect())
    }
}

impl<T> Index<ReplicaId> for PerReplica<T> {
    type Output = T;

    /// Panics for a replica that is not of this configuration.
    fn index(&self, replica: ReplicaId) -> &T {
        &self.0[replica.index()]
    }
}
