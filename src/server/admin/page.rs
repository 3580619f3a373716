//! How a metric is written: help, type and samples, by the OpenMetrics encoder.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::metrics::Histogram;

/// Times below this are one bucket: no disk or network is that fast.
const MICROS_MIN: u64 = 8;

/// A label's name and value.
pub type Label = (&'static str, String);

/// Writes metrics, each with its help and type. Names come without unit and `_total`.
pub struct Page<'a> {
    pub encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    pub fn info(&mut self, name: &str, help: &str, labels: &[Label; 1]) -> Result<(), Error> {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Info)?;
        metric.encode_info(labels)
    }

    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: u64,
    ) -> Result<(), Error> {
        self.gauges(name, help, unit, &[([], value)])
    }

    pub fn gauge_f64(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: f64,
    ) -> Result<(), Error> {
        let unit = unit.as_ref();
        self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        series: &[([Label; N], u64)],
    ) -> Result<(), Error> {
        let unit = unit.as_ref();
        let mut family = self.encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        each(&mut family, series, |metric, value| metric.encode_gauge(value))
    }

    pub fn counter(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        value: u64,
    ) -> Result<(), Error> {
        let unit = unit.as_ref();
        let mut metric = self.encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        series: &[([Label; 1], u64)],
    ) -> Result<(), Error> {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        each(&mut family, series, |metric, value| {
            metric.encode_counter::<NoLabelSet, _, f64>(value, None)
        })
    }

    pub fn counters_f64<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        series: &[([Label; N], f64)],
    ) -> Result<(), Error> {
        let kind = MetricType::Counter;
        let mut family = self.encoder.encode_descriptor(name, help, Some(&unit), kind)?;
        each(&mut family, series, |metric, value| {
            metric.encode_counter::<NoLabelSet, _, f64>(value, None)
        })
    }

    /// Microseconds, shown as seconds.
    pub fn times(
        &mut self,
        name: &str,
        help: &str,
        series: &[([Label; 1], Histogram)],
    ) -> Result<(), Error> {
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
        let mut family = self.encoder.encode_descriptor(name, help, unit, kind)?;
        each(&mut family, series, |metric, micros| encode(metric, micros, MICROS_MIN, 1e6))
    }

    pub fn time(&mut self, name: &str, help: &str, micros: Histogram) -> Result<(), Error> {
        let unit = Some(Unit::Seconds);
        let (unit, kind) = (unit.as_ref(), MetricType::Histogram);
        let mut metric = self.encoder.encode_descriptor(name, help, unit, kind)?;
        encode(&mut metric, &micros, MICROS_MIN, 1e6)
    }

    pub fn histogram(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        from: u64,
        values: &Histogram,
    ) -> Result<(), Error> {
        let (unit, kind) = (unit.as_ref(), MetricType::Histogram);
        let mut metric = self.encoder.encode_descriptor(name, help, unit, kind)?;
        encode(&mut metric, values, from, 1.0)
    }
}

/// One sample for each set of labels; none, and it stands without braces.
fn each<const N: usize, V>(
    family: &mut MetricEncoder,
    series: &[([Label; N], V)],
    sample: impl Fn(&mut MetricEncoder, &V) -> Result<(), Error>,
) -> Result<(), Error> {
    for (labels, value) in series {
        if N == 0 {
            sample(family, value)?;
        } else {
            sample(&mut family.encode_family(labels)?, value)?;
        }
    }
    Ok(())
}

/// Buckets from `from` on, and everything divided by `scale`.
fn encode(
    metric: &mut MetricEncoder,
    values: &Histogram,
    from: u64,
    scale: f64,
) -> Result<(), Error> {
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    let mut below = 0;
    for (top, count) in values.buckets() {
        match top {
            Some(top) if top < from => below += count,
            Some(top) => buckets.push((top as f64 / scale, count + std::mem::take(&mut below))),
            None => buckets.push((f64::INFINITY, count)),
        }
    }
    metric.encode_histogram::<NoLabelSet>(
        values.sum() as f64 / scale,
        values.count(),
        &buckets,
        None,
    )
}
