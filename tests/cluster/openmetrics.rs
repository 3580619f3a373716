//! Reads a metrics page as strictly as the OpenMetrics standard writes it.

use std::collections::BTreeMap;

/// Every sample of a page, under its name and labels as written: `name{a="b"}`.
#[derive(Clone, Debug)]
pub struct Page {
    pub samples: BTreeMap<String, f64>,
    pub counters: Vec<String>,
    /// Names of families, without `_total`, with their types.
    pub families: BTreeMap<String, String>,
}

impl Page {
    /// # Panics
    /// With the line, when the page breaks a rule.
    pub fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("a page ends with # EOF");
        let (mut samples, mut counters) = (BTreeMap::new(), Vec::new());
        let mut families: BTreeMap<String, String> = BTreeMap::new();
        let mut family = (String::new(), String::new());
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (what, name) = (words.next().unwrap(), words.next().expect(line));
                let value = words.next().expect(line);
                match what {
                    "TYPE" => {
                        assert_eq!(family.0, name, "HELP comes before TYPE: {line}");
                        let known = ["counter", "gauge", "histogram", "info"];
                        assert!(known.contains(&value), "{line}");
                        family.1 = value.into();
                        families.insert(name.into(), value.into());
                    }
                    "HELP" => {
                        assert!(!families.contains_key(name), "one block a family: {line}");
                        assert!(!value.is_empty(), "{line}");
                        family = (name.into(), String::new());
                    }
                    "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                    other => panic!("{other}: {line}"),
                }
                continue;
            }
            let (key, value) = line.rsplit_once(' ').expect(line);
            let (name, labels) = split(key);
            let suffix = name.strip_prefix(&family.0).unwrap_or_else(|| panic!("stray {line}"));
            let suffixes: &[&str] = match family.1.as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                _ => &["_sum", "_count", "_bucket"],
            };
            assert!(suffixes.contains(&suffix), "{line} in {family:?}");
            assert_eq!(suffix == "_bucket", labels.contains_key("le"), "{line}");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(value >= 0.0 && value.is_finite(), "{line}");
            if family.1 == "counter" {
                counters.push(key.to_owned());
            }
            assert!(samples.insert(key.to_owned(), value).is_none(), "twice: {line}");
        }
        let page = Self { samples, counters, families };
        page.check_histograms();
        page
    }

    /// Buckets do not fall, and the last one holds all.
    fn check_histograms(&self) {
        let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (key, &count) in &self.samples {
            let (name, labels) = split(key);
            let (Some(family), Some(le)) = (name.strip_suffix("_bucket"), labels.get("le")) else {
                continue;
            };
            let others: Vec<_> = labels.iter().filter(|(name, _)| **name != "le").collect();
            let others: Vec<_> = others.iter().map(|(n, v)| format!("{n}=\"{v}\"")).collect();
            let labels =
                if others.is_empty() { String::new() } else { format!("{{{}}}", others.join(",")) };
            let le = if *le == "+Inf" { f64::INFINITY } else { le.parse().expect(key) };
            buckets.entry(format!("{family}_count{labels}")).or_default().push((le, count));
        }
        for (key, mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{key}: {buckets:?}");
            let (le, all) = *buckets.last().unwrap();
            assert_eq!((le, all), (f64::INFINITY, self.get(&key)), "{key}");
        }
    }

    /// One sample.
    ///
    /// # Panics
    /// When the page does not have it.
    pub fn get(&self, key: &str) -> f64 {
        *self.samples.get(key).unwrap_or_else(|| panic!("{key} is not in {:#?}", self.samples))
    }

    /// The sum over all labels of a name.
    pub fn sum(&self, name: &str) -> f64 {
        self.samples.iter().filter(|(key, _)| split(key).0 == name).map(|(_, value)| value).sum()
    }
}

fn split(key: &str) -> (&str, BTreeMap<&str, &str>) {
    let Some((name, labels)) = key.split_once('{') else { return (key, BTreeMap::new()) };
    let labels = labels.strip_suffix('}').expect(key);
    assert!(!labels.is_empty(), "empty braces: {key}");
    let pairs = labels.split(',').map(|pair| {
        let (name, value) = pair.split_once('=').expect(key);
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).expect(key);
        (name, value)
    });
    (name, pairs.collect())
}

#[test]
#[should_panic(expected = "h_count: [(1.0, 3.0), (inf, 2.0)]")]
fn a_histogram_that_falls_is_seen() {
    Page::parse(
        "# HELP h help\n# TYPE h histogram\nh_sum 1.0\nh_count 2\n\
         h_bucket{le=\"1.0\"} 3\nh_bucket{le=\"+Inf\"} 2\n# EOF\n",
    );
}
