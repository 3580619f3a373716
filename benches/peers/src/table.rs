//! One table a comparison.

use crate::side::Record;

/// Heading of the rows that [`cell`] writes.
pub fn heading(cell: &str) -> String {
    let head = format!(
        "{cell:<24} {:<28} {:>12} {:>21} {:>9} {:>9} {:>12}",
        "side", "commands/s", "slowest – fastest", "p50 us", "p99 us", "ours / it"
    );
    format!("{head}\n{}\n", "-".repeat(head.chars().count()))
}

/// The rows of one cell. `ours` = which of the records the others are compared with, if any.
pub fn cell(title: &str, records: &mut [Record], ours: Option<usize>) -> String {
    let ratios: Vec<String> = (0..records.len())
        .map(|i| match ours {
            Some(own) if own != i => format!("{:.2}x", records[own].ratio_to(&records[i])),
            _ => String::new(),
        })
        .collect();
    let mut out = String::new();
    for (i, (record, ratio)) in records.iter_mut().zip(ratios).enumerate() {
        let title = if i == 0 { title } else { "" };
        let (low, high) = record.range();
        let range = format!("{} – {}", rate(low), rate(high));
        let (p50, p99) = (record.step_us(0.5), record.step_us(0.99));
        out += &format!(
            "{title:<24} {:<28} {:>12} {range:>21} {p50:>9.1} {p99:>9.1} {ratio:>12}\n",
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
