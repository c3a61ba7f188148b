//! Metric families built by hand, for values that are not kept in the `prometheus` crate's own types.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::worker::Histogram;

/// One family: its name, what it says, and its labels.
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
}

impl Spec {
    pub(super) fn desc(&self) -> Result<Desc, prometheus::Error> {
        Desc::new(
            self.name.to_owned(),
            self.help.to_owned(),
            self.labels.iter().map(|&l| l.to_owned()).collect(),
            HashMap::new(),
        )
    }

    pub(super) fn family(&self, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    /// An empty sample with `values` for this family's labels.
    fn sample(&self, values: &[&str]) -> Metric {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let pair = |(&name, &value): (&&str, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        Metric::from_label(self.labels.iter().zip(values).map(pair).collect())
    }

    pub(super) fn counter(&self, values: &[&str], count: f64) -> Metric {
        let mut counter = proto::Counter::default();
        counter.set_value(count);
        let mut metric = self.sample(values);
        metric.set_counter(counter);
        metric
    }

    pub(super) fn gauge(&self, values: &[&str], value: f64) -> Metric {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        let mut metric = self.sample(values);
        metric.set_gauge(gauge);
        metric
    }

    #[expect(clippy::cast_precision_loss, reason = "samples are floats in the text format")]
    pub(super) fn histogram<'a>(
        &self,
        values: &[&str],
        parts: impl Iterator<Item = &'a Histogram>,
    ) -> Metric {
        let mut bounds: &[u64] = &[];
        let mut counts: Vec<u64> = Vec::new();
        let mut seconds = 0.0;
        for part in parts {
            bounds = part.bounds();
            counts.resize(bounds.len() + 1, 0);
            counts
                .iter_mut()
                .zip(part.counts())
                .for_each(|(sum, count)| *sum += count);
            seconds += part.sum() as f64 / 1e9;
        }
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(bounds.len());
        for (bound, count) in bounds.iter().zip(&counts) {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e9);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        // The count is the sum of the buckets, so that a scrape in the middle of an observation agrees with itself.
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(seconds);
        histogram.set_bucket(buckets);
        let mut metric = self.sample(values);
        metric.set_histogram(histogram);
        metric
    }
}
