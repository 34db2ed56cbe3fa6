//! Statistics in files, and properties over arbitrary data.

use super::*;
use proptest::prelude::*;

#[test]
fn broken_statistics_are_refused() {
    let read = |text: &str| serde_json::from_str::<ActivationObserver>(text).map_err(|e| e.to_string());
    let good = |kind| serde_json::to_string(&seen(kind, &[&[1.0, 2.0]])).unwrap();
    let minmax = good(ObserverKind::MinMax);
    assert!(read(&minmax).is_ok());
    assert!(read(&minmax.replace("[2.0]", "[2.0,3.0]")).unwrap_err().contains("contradict"));
    assert!(read(&minmax.replace("[2.0]", "[\"two\"]")).unwrap_err().contains("two"));
    assert!(read(&minmax.replace("\"axis\":null", "\"axis\":0")).is_ok());
    let histogram = good(ObserverKind::Histogram { bins: 8 });
    assert!(read(&histogram).is_ok());
    for (from, to) in
        [("[1.0,", "["), ("\"bins\":8", "\"bins\":9"), ("\"bins\":8", "\"bins\":1"), ("[1.0,", "[-1.0,")]
    {
        assert!(histogram.contains(from) && read(&histogram.replace(from, to)).is_err(), "{from} {to}");
    }
    let percentile = good(ObserverKind::PERCENTILE);
    assert!(read(&percentile).is_ok());
    for (from, to) in [("\"127\":", "\"600\":"), ("[1,", "["), ("\"low\":1.0", "\"low\":3.0")] {
        assert!(percentile.contains(from) && read(&percentile.replace(from, to)).is_err(), "{from} {to}");
    }
}

proptest! {
    #[test]
    fn statistics_survive_json(
        batches in prop::collection::vec(prop::collection::vec(prop::num::f32::ANY, 1..40), 1..4),
        kind in prop::sample::select(KINDS.to_vec()),
    ) {
        let mut o = observer(kind, None);
        for batch in &batches {
            let _ = o.observe(batch, &[batch.len()]);
            let again = saved_and_read(&o);
            prop_assert_eq!(format!("{again:?}"), format!("{o:?}"));
            let bits = |o: &ActivationObserver| o.range().map(|(a, b)| (a.to_bits(), b.to_bits()));
            if o.range().is_some_and(|(a, b)| !a.is_nan() && !b.is_nan()) {
                prop_assert_eq!(bits(&again), bits(&o));
            }
            let _ = o.qparams(8, true, true, false);
        }
    }

    #[test]
    fn ranges_lie_within_the_data(
        batches in prop::collection::vec(prop::collection::vec(-1e6f32..1e6, 1..60), 1..5),
        kind in prop::sample::select(KINDS.to_vec()),
    ) {
        let mut o = observer(kind, None);
        for batch in &batches {
            o.observe(batch, &[batch.len()]).unwrap();
        }
        let ((low, high), (least, most)) = (o.range().unwrap(), o.facts().extremes.unwrap());
        let slack = (most - least) * 1e-5;
        prop_assert!(low >= least - slack && high <= most + slack && low <= high + slack);
    }
}
