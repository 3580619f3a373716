//! The replicated configuration: keys and values set by `CONFIG_UPDATE`, and what they mean.
//!
//! | key | value | meaning |
//! |---|---|---|
//! | `route/<prefix>` | queue | topics that begin with the prefix go there; the longest prefix wins |
//! | `retention/events`, `retention/bytes` | number ≥ 1 | default limits of a queue |
//! | `retention/<queue>/events`, `retention/<queue>/bytes` | number ≥ 1 | limits of one queue |
//! | `limits/queues` | number ≥ 1 | queues; an event that needs one more is rejected |
//! | `limits/dedup_ids` | number ≥ 1 | event ids remembered; beyond, the oldest goes |
//! | `limits/bytes` | number ≥ 1 | encoded bytes of all queues; beyond, the fullest queues are trimmed |
//! | any other | any | kept for the application |
//!
//! An empty value removes a key. A key of the first four families that does not parse is rejected
//! and changes nothing.

use super::queue::Retention;
use crate::block::KEY_BYTES_MAX;
use crate::machine::hash::{FixedMap, mix, mix_bytes};
use crate::machine::shared::SharedMap;

/// Longest value of a configuration key, bytes.
pub const CONFIG_VALUE_BYTES_MAX: usize = 4096;
/// Most configuration keys.
pub const CONFIG_KEYS_MAX: usize = 65_536;

/// Limits before any `CONFIG_UPDATE`. They decide what is kept, so all replicas must be given the
/// same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventLimits {
    /// Events kept per queue.
    pub retention_events: u64,
    /// Encoded bytes kept per queue.
    pub retention_bytes: u64,
    /// Queues.
    pub queues: u64,
    /// Event ids remembered.
    pub dedup_ids: u64,
    /// Encoded bytes kept in all queues together.
    pub bytes: u64,
}

impl EventLimits {
    /// In the order of the fields, as a snapshot names them.
    pub(super) fn numbers(&self) -> [u64; 5] {
        [self.retention_events, self.retention_bytes, self.queues, self.dedup_ids, self.bytes]
    }
}

impl Default for EventLimits {
    fn default() -> Self {
        Self {
            retention_events: 1_000_000,
            retention_bytes: 64 << 20,
            queues: 65_536,
            dedup_ids: 1_000_000,
            bytes: 1 << 30,
        }
    }
}

/// What a configuration key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Route(&'a [u8]),
    /// A limit of one queue, or of all that have none of their own.
    RetentionEvents(Option<&'a [u8]>),
    RetentionBytes(Option<&'a [u8]>),
    LimitQueues,
    LimitDedupIds,
    LimitBytes,
    Application,
}

impl<'a> Key<'a> {
    /// `None`: the key belongs to one of the families but names nothing in it.
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        if let Some(prefix) = key.strip_prefix(b"route/") {
            return Some(Self::Route(prefix));
        }
        if let Some(rest) = key.strip_prefix(b"retention/") {
            return match rest {
                b"events" => Some(Self::RetentionEvents(None)),
                b"bytes" => Some(Self::RetentionBytes(None)),
                _ => rest
                    .strip_suffix(b"/events")
                    .map(|queue| Self::RetentionEvents(Some(queue)))
                    .or(rest.strip_suffix(b"/bytes").map(|q| Self::RetentionBytes(Some(q)))),
            };
        }
        match key.strip_prefix(b"limits/") {
            Some(b"queues") => Some(Self::LimitQueues),
            Some(b"dedup_ids") => Some(Self::LimitDedupIds),
            Some(b"bytes") => Some(Self::LimitBytes),
            Some(_) => None,
            None => Some(Self::Application),
        }
    }

    fn admits(&self, value: &[u8]) -> bool {
        match self {
            _ if value.is_empty() => true,
            Self::Application => true,
            Self::Route(_) => value.len() <= KEY_BYTES_MAX,
            _ => number(value).is_some(),
        }
    }
}

/// A decimal number of at least 1.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    text.parse().ok().filter(|&n| n >= 1)
}

/// The table, and the routes in the form in which they are looked up.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) defaults: EventLimits,
    /// What holds now for the limits that are not a queue's.
    pub limits: EventLimits,
    pub(super) table: SharedMap,
    table_bytes: u64,
    routes: FixedMap<Box<[u8]>, Box<[u8]>>,
    /// Lengths that prefixes have, longest first, with how many have it.
    prefix_sizes: Vec<(usize, u32)>,
}

impl Settings {
    pub fn new(defaults: EventLimits) -> Self {
        Self { defaults, limits: defaults, ..Self::default() }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.table.get(key)
    }

    /// Sets a key, or removes it when the value is empty. `None`: rejected, nothing changed.
    pub fn set<'a>(&mut self, key: &'a [u8], value: &[u8]) -> Option<Key<'a>> {
        let parsed = Key::parse(key)?;
        let one_too_many = self.table.len() >= CONFIG_KEYS_MAX && self.table.get(key).is_none();
        if !parsed.admits(value)
            || value.len() > CONFIG_VALUE_BYTES_MAX
            || (one_too_many && !value.is_empty())
        {
            return None;
        }
        self.store(key, value);
        match parsed {
            Key::Route(prefix) => self.set_route(prefix, value),
            _ => self.reload_limits(),
        }
        Some(parsed)
    }

    fn store(&mut self, key: &[u8], value: &[u8]) {
        let old = match value {
            [] => self.table.remove(key),
            _ => self.table.insert(key, value),
        };
        self.table_bytes -= old.map_or(0, |old| (key.len() + old.len()) as u64);
        self.table_bytes += if value.is_empty() { 0 } else { (key.len() + value.len()) as u64 };
    }

    fn set_route(&mut self, prefix: &[u8], queue: &[u8]) {
        let (had, has) = match queue {
            [] => (self.routes.remove(prefix).is_some(), false),
            _ => (self.routes.insert(prefix.into(), queue.into()).is_some(), true),
        };
        let size = prefix.len();
        let place = self.prefix_sizes.binary_search_by(|(s, _)| size.cmp(s));
        match (had, has, place) {
            (false, true, Ok(at)) => self.prefix_sizes[at].1 += 1,
            (false, true, Err(at)) => self.prefix_sizes.insert(at, (size, 1)),
            (true, false, Ok(at)) if self.prefix_sizes[at].1 > 1 => self.prefix_sizes[at].1 -= 1,
            (true, false, Ok(at)) => drop(self.prefix_sizes.remove(at)),
            _ => {}
        }
    }

    fn reload_limits(&mut self) {
        let value = |key: &[u8], default| self.get(key).and_then(number).unwrap_or(default);
        let defaults = self.defaults;
        self.limits = EventLimits {
            retention_events: value(b"retention/events", defaults.retention_events),
            retention_bytes: value(b"retention/bytes", defaults.retention_bytes),
            queues: value(b"limits/queues", defaults.queues),
            dedup_ids: value(b"limits/dedup_ids", defaults.dedup_ids),
            bytes: value(b"limits/bytes", defaults.bytes),
        };
    }

    /// What a queue of this name may keep. Not on the hot path: asked once a queue and change.
    pub fn retention(&self, queue: &[u8]) -> Retention {
        let own = |what: &[u8]| self.get(&[b"retention/", queue, what].concat()).and_then(number);
        Retention {
            events: own(b"/events").unwrap_or(self.limits.retention_events),
            bytes: own(b"/bytes").unwrap_or(self.limits.retention_bytes),
        }
    }

    /// The name of the queue for a topic: the longest matching prefix's, else the topic up to its
    /// first `/`.
    pub fn route<'a>(&'a self, topic: &'a [u8]) -> &'a [u8] {
        for &(size, _) in &self.prefix_sizes {
            if let Some(prefix) = topic.get(..size)
                && let Some(queue) = self.routes.get(prefix)
            {
                return queue;
            }
        }
        let segment = topic.iter().position(|&b| b == b'/').unwrap_or(topic.len());
        &topic[..segment]
    }

    pub fn digest(&self, seed: u64) -> u64 {
        let start = mix(seed, self.table.len() as u64);
        self.table.iter().fold(start, |d, (k, v)| mix_bytes(mix_bytes(d, k), v))
    }

    pub fn memory_bytes(&self) -> u64 {
        // Routes are held twice; 96 covers both maps' entries.
        2 * self.table_bytes + 96 * self.table.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut settings = Settings::new(EventLimits::default());
        for (key, value) in pairs {
            settings.set(key.as_bytes(), value.as_bytes()).expect("accepted");
        }
        settings
    }

    #[test]
    fn the_longest_prefix_wins_and_the_first_segment_is_the_fallback() {
        let mut s = settings(&[
            ("route/orders/", "orders-all"),
            ("route/orders/eu/", "orders-eu"),
            ("route/orders/us/", "orders-us"),
        ]);
        assert_eq!(s.route(b"orders/eu/new"), b"orders-eu");
        assert_eq!(s.route(b"orders/jp/new"), b"orders-all");
        assert_eq!(s.route(b"orders"), b"orders");
        assert_eq!(s.route(b"sensors/4/temperature"), b"sensors");

        s.set(b"route/orders/eu/", b"").unwrap();
        assert_eq!(s.route(b"orders/eu/new"), b"orders-all");
        assert_eq!(s.route(b"orders/us/new"), b"orders-us", "same length, still there");
        s.set(b"route/", b"rest").unwrap();
        assert_eq!(s.route(b"sensors/4"), b"rest");
    }

    #[test]
    fn a_value_that_does_not_parse_is_rejected_and_changes_nothing() {
        let mut s = settings(&[("limits/queues", "5")]);
        for (key, value) in [
            ("limits/queues", "many"),
            ("limits/queues", "0"),
            ("limits/quues", "1"),
            ("retention/orders", "1"),
            ("retention/events", "-1"),
        ] {
            assert_eq!(s.set(key.as_bytes(), value.as_bytes()), None, "{key} = {value}");
        }
        assert_eq!(s.limits.queues, 5);
        assert_eq!(s.set(b"app", &[b'x'; CONFIG_VALUE_BYTES_MAX + 1]), None);
    }

    #[test]
    fn a_queues_own_limit_goes_before_the_default_and_removal_brings_the_default_back() {
        let mut s = settings(&[("retention/events", "10"), ("retention/a/b/events", "3")]);
        assert_eq!(s.retention(b"a/b").events, 3);
        assert_eq!(s.retention(b"c").events, 10);
        s.set(b"retention/a/b/events", b"").unwrap();
        s.set(b"retention/events", b"").unwrap();
        assert_eq!(s.retention(b"a/b").events, EventLimits::default().retention_events);
        assert_eq!(s.table_bytes, 0);
    }
}
