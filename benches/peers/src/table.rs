//! One table a comparison.

use crate::side::Record;

/// Heading of the rows that [`cell`] writes.
pub fn heading(cell: &str) -> String {
    let head = format!(
        "{cell:<24} {:<28} {:>12} {:>21} {:>9} {:>9} {:>9} {:>10} {:>8}",
        "side",
        "commands/s",
        "slowest – fastest",
        "p50 us",
        "p99 us",
        "p99.9",
        "ours / it",
        "fastest"
    );
    format!("{head}\n{}\n", "-".repeat(head.chars().count()))
}

/// The rows of one cell. The ratios are the median over rounds, and that of the fastest slices. `ours` = which of the records the others are compared with, if any.
pub fn cell(title: &str, records: &mut [Record], ours: Option<usize>) -> String {
    let ratios: Vec<String> = (0..records.len())
        .map(|i| match ours.map(|own| &records[own]) {
            Some(own) if own.name != records[i].name => {
                let (median, best) = (own.ratio_to(&records[i]), own.best_ratio_to(&records[i]));
                format!("{median:>9.2}x {best:>7.2}x")
            }
            _ => String::new(),
        })
        .collect();
    let mut out = String::new();
    for (i, (record, ratio)) in records.iter_mut().zip(ratios).enumerate() {
        let title = if i == 0 { title } else { "" };
        let (low, high) = record.range();
        let range = format!("{} – {}", rate(low), rate(high));
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|q| record.step_us(q));
        out += &format!(
            "{title:<24} {:<28} {:>12} {range:>21} {p50:>9.1} {p99:>9.1} {p999:>9.1} {ratio}\n",
            record.name,
            rate(record.commands_per_s()),
        );
    }
    out
}

/// Three digits and a unit.
fn rate(per_s: f64) -> String {
    match per_s {
        r if r >= 1e6 => format!("{:.2} M", r / 1e6),
        r if r >= 1e3 => format!("{:.1} k", r / 1e3),
        r => format!("{r:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_at_a_glance() {
        assert_eq!([rate(950.0), rate(11_620.0), rate(2_534_000.0)], ["950", "11.6 k", "2.53 M"]);
    }
}
