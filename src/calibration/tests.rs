mod saved;

use super::*;

fn observer(kind: ObserverKind, axis: Option<usize>) -> ActivationObserver {
    ActivationObserver::new(kind, axis).unwrap()
}

fn seen(kind: ObserverKind, batches: &[&[f32]]) -> ActivationObserver {
    let mut observer = observer(kind, None);
    for batch in batches {
        observer.observe(batch, &[batch.len()]).unwrap();
    }
    observer
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

fn saved_and_read(observer: &ActivationObserver) -> ActivationObserver {
    serde_json::from_str(&serde_json::to_string(observer).unwrap()).unwrap()
}

const KINDS: [ObserverKind; 4] =
    [ObserverKind::MinMax, ObserverKind::MOVING_AVERAGE, ObserverKind::HISTOGRAM, ObserverKind::PERCENTILE];

/// Numbers like a normal distribution's, from a small generator.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

#[test]
fn nothing_seen_is_no_range() {
    for kind in KINDS {
        let mut o = observer(kind, None);
        o.observe(&[], &[0, 7]).unwrap();
        assert_eq!((o.range(), o.ranges(), o.facts().batches), (None, None, 0), "{kind:?}");
        assert!(refusal(o.qparams(8, false, true, false)).contains("no values were observed"));
        assert_eq!(saved_and_read(&o), o);
    }
}

#[test]
fn minmax_keeps_the_extremes() {
    let o = seen(ObserverKind::MinMax, &[&[1.0, -2.0], &[5.0], &[0.5, -0.5]]);
    assert_eq!(o.range(), Some((-2.0, 5.0)));
    let q = o.qparams(8, false, true, false).unwrap();
    assert_eq!((q.scales, q.zero_points), (vec![7.0 / 255.0], vec![-128 + 73])); // 2 · 255 / 7 = 72.86
    let q = o.qparams(8, true, false, false).unwrap();
    assert_eq!((q.scales, q.zero_points), (vec![5.0 / 127.5], vec![128]));
}

#[test]
fn one_sided_ranges_reach_zero() {
    let positive = seen(ObserverKind::MinMax, &[&[2.0, 5.1]]);
    let q = positive.qparams(8, false, false, false).unwrap();
    assert_eq!((q.scales, q.zero_points), (vec![5.1 / 255.0], vec![0]));
    let negative = seen(ObserverKind::MinMax, &[&[-2.0, -5.1]]);
    let q = negative.qparams(8, false, false, false).unwrap();
    assert_eq!((q.scales, q.zero_points), (vec![5.1 / 255.0], vec![255]));
    let q = negative.qparams(8, true, true, true).unwrap();
    assert_eq!((q.scales, q.zero_points, q.qmin, q.qmax), (vec![5.1 / 63.5], vec![0], -64, 63));
}

#[test]
fn zeros_get_the_least_scale() {
    for kind in KINDS {
        let o = seen(kind, &[&[0.0; 9], &[-0.0]]);
        assert_eq!(o.range().map(|r| (r.0.to_bits(), r.1.to_bits())), Some((0, 0)), "{kind:?}");
        let q = o.qparams(8, false, true, false).unwrap();
        assert_eq!((q.scales, q.zero_points), (vec![f32::EPSILON], vec![-128]), "{kind:?}");
        assert!(o.facts().constant());
    }
}

#[test]
fn fewer_bits_are_a_custom_range() {
    let o = seen(ObserverKind::MinMax, &[&[-1.0, 3.0]]);
    let q = o.qparams(4, true, false, false).unwrap();
    assert_eq!((q.scales, q.zero_points, q.qmin, q.qmax), (vec![3.0 / 7.5], vec![7], 0, 15));
    let q = o.qparams(4, false, true, true).unwrap();
    assert_eq!((q.scales, q.zero_points, q.qmin, q.qmax), (vec![4.0 / 7.0], vec![-2], -4, 3));
    assert!(refusal(o.qparams(9, true, true, false)).contains("2 to 8 bits"));
    assert!(refusal(o.qparams(8, true, false, true)).contains("reduced range"));
}

#[test]
fn moving_average_follows_from_the_first_batch() {
    let o = seen(ObserverKind::MOVING_AVERAGE, &[&[-1.0, 2.0], &[-3.0, 4.0]]);
    assert_eq!(o.range(), Some((-1.0 + 0.01 * -2.0, 2.0 + 0.01 * 2.0)));
    assert_eq!(o.facts().extremes, Some((-3.0, 4.0)));
}

#[test]
fn channels_lie_along_the_axis() {
    let values: Vec<f32> = (0..24).map(|i| (i * 7 % 24) as f32 - 11.0).collect();
    for (axis, shape) in [(0, [2, 3, 4]), (1, [2, 3, 4]), (2, [2, 3, 4]), (2, [1, 1, 24]), (2, [12, 2, 1])] {
        let mut o = observer(ObserverKind::MinMax, Some(axis));
        o.observe(&values, &shape).unwrap();
        let mut expected = vec![(f32::MAX, f32::MIN); shape[axis]];
        for (i, &x) in values.iter().enumerate() {
            let place = [i / shape[2] / shape[1], i / shape[2] % shape[1], i % shape[2]][axis];
            expected[place] = (expected[place].0.min(x), expected[place].1.max(x));
        }
        assert_eq!(o.ranges(), Some(expected), "{shape:?} by {axis}");
        assert_eq!(o.range(), Some((-11.0, 12.0)));
        assert_eq!(o.qparams(8, true, true, false).unwrap().scales.len(), shape[axis]);
    }
}

#[test]
fn batches_may_differ_in_all_but_the_channels() {
    let mut o = observer(ObserverKind::MOVING_AVERAGE, Some(1));
    o.observe(&[1.0, 2.0], &[1, 2]).unwrap();
    o.observe(&[1.0; 12], &[3, 2, 2]).unwrap();
    let before = o.clone();
    assert!(refusal(o.observe(&[1.0; 3], &[1, 3])).contains("3 channels; earlier inputs had 2"));
    assert!(refusal(o.observe(&[1.0; 3], &[3])).contains("no axis 1"));
    assert!(refusal(o.observe(&[1.0; 3], &[4])).contains("do not fill"));
    assert!(refusal(o.observe(&[1.0], &[usize::MAX, 2])).contains("do not fill"));
    assert_eq!(o, before);
}

#[test]
fn nan_is_refused_and_changes_nothing() {
    for kind in KINDS {
        let mut o = seen(kind, &[&[1.0, -1.0]]);
        let before = o.clone();
        for place in 0..70 {
            let mut values = vec![2.0; 70];
            values[place] = f32::NAN;
            values[69] = f32::NAN;
            let text = refusal(o.observe(&values, &[70]));
            let count = if place == 69 { 1 } else { 2 };
            assert!(
                text.contains(&format!("{count} of 70 values are NaN, the first at index {place}")),
                "{text}"
            );
            if kind == ObserverKind::MinMax {
                for axis in 0..2 {
                    let mut o = observer(kind, Some(axis));
                    assert!(refusal(o.observe(&values, &[7, 10])).contains("NaN"));
                }
            }
        }
        assert_eq!(o, before);
    }
}

#[test]
fn infinities_enter_minmax_and_are_dropped_from_histograms() {
    let batch = [1.0, f32::INFINITY, -4.0, f32::NEG_INFINITY, 3.0];
    for kind in KINDS {
        let o = seen(kind, &[&batch]);
        assert_eq!((o.facts().infinities, o.facts().values), (2, 5));
        assert_eq!(o.facts().extremes, Some((-4.0, 3.0)));
        assert_eq!(saved_and_read(&o), o);
        if matches!(kind, ObserverKind::Histogram { .. } | ObserverKind::Percentile { .. }) {
            assert!(o.qparams(8, false, true, false).is_ok());
            let only = seen(kind, &[&[f32::INFINITY]]);
            assert_eq!(only.range(), None);
            assert!(refusal(only.qparams(8, false, true, false)).contains("all were infinite"));
        } else {
            assert_eq!(o.range(), Some((f32::NEG_INFINITY, f32::INFINITY)));
            assert!(refusal(o.qparams(8, true, true, false)).contains("2 infinite values were seen"));
        }
    }
    let o = seen(ObserverKind::MOVING_AVERAGE, &[&[1.0, f32::INFINITY], &[1.0, 2.0]]);
    assert!(o.range().unwrap().1.is_nan() && saved_and_read(&o).range().unwrap().1.is_nan());
    assert!(o.qparams(8, true, true, false).is_err());
}

#[test]
fn ranges_too_wide_for_f32_are_refused() {
    let wide = [-3e38, 3e38];
    assert!(
        refusal(seen(ObserverKind::MinMax, &[&wide]).qparams(8, false, true, false))
            .contains("no finite scale")
    );
    assert!(seen(ObserverKind::MinMax, &[&wide]).qparams(8, true, true, false).is_ok());
    let mut o = seen(ObserverKind::HISTOGRAM, &[&[1.0, 2.0]]);
    let before = o.clone();
    assert!(refusal(o.observe(&wide, &[2])).contains("too far apart"));
    assert_eq!(o, before);
}

#[test]
fn options_are_checked() {
    let refused = |kind, axis| refusal(ActivationObserver::new(kind, axis));
    for kind in [ObserverKind::HISTOGRAM, ObserverKind::PERCENTILE] {
        assert!(refused(kind, Some(1)).contains("one range for a whole input"));
    }
    for c in [0.0, -1.0, 1.5, f64::NAN] {
        assert!(
            refused(ObserverKind::MovingAverageMinMax { averaging_constant: c }, None).contains("averaging")
        );
    }
    for p in [50.0, 100.1, f64::NAN] {
        assert!(refused(ObserverKind::Percentile { percentile: p }, None).contains("percentile"));
    }
    for bins in [0, 7, 1 << 16] {
        assert!(refused(ObserverKind::Histogram { bins }, None).contains("bins"));
    }
}

/// Ranges that torch 2.15's HistogramObserver gives for these integers over powers of two.
#[test]
fn histogram_equals_torch() {
    let ramp = |n: i32, unit: f32| (0..n).map(|i| ((i * i) % 1009 - 300) as f32 * unit).collect::<Vec<_>>();
    let range = |batches: &[&[f32]]| {
        let (low, high) = seen(ObserverKind::HISTOGRAM, batches).range().unwrap();
        [low.to_bits(), high.to_bits()]
    };
    let [small, large, outlier] =
        [ramp(5000, 1.0 / 256.0), ramp(700, 1.0 / 32.0), vec![1000.0 / 16.0, 0.5, -1.0]];
    let constant = vec![2.5f32; 100];
    assert_eq!(range(&[&small]), [0xbf960000, 0x4030a180]); // -1.171875 to 2.759857177734375
    assert_eq!(range(&[&small, &large]), [0xc1160000, 0x41b0e080]); // -9.375 to 22.109619140625
    assert_eq!(range(&[&small, &large, &outlier]), [0xc1160000, 0x4279dc10]); // -9.375 to 62.46490478515625
    assert_eq!(range(&[&outlier, &small]), [0xbf960000, 0x4279e02a]); // -1.171875 to 62.468910217285156
    assert_eq!(range(&[&constant, &small]), [0xbf960000, 0x4030e080]); // -1.171875 to 2.763702392578125
    assert_eq!(range(&[&small, &constant, &large]), [0xc1160000, 0x41b0e080]); // -9.375 to 22.109619140625
    assert_eq!(range(&[&constant]), [2.5f32.to_bits(); 2]);
}

#[test]
fn a_constant_histogram_moves_whole() {
    let kind = ObserverKind::Histogram { bins: 8 };
    let o = seen(kind, &[&[1.0; 24], &[0.0, 2.0]]);
    let text = serde_json::to_string(&o).unwrap();
    assert!(text.contains("[1.0,0.0,0.0,0.0,24.0,0.0,0.0,1.0]"), "{text}");
}

#[test]
fn widening_splits_bins_into_sixteenths() {
    let kind = ObserverKind::Histogram { bins: 8 };
    // eight bins of 1; over twelve they are 1.5 wide, and every other one takes parts of two
    let first: Vec<f32> = (0..=8).map(|i| i as f32).collect();
    let o = seen(kind, &[&first, &[12.0]]);
    let text = serde_json::to_string(&o).unwrap();
    // the last old bin holds 7 and 8; 6 to 7.5 are bins 6 and half of 7
    assert!(text.contains("[1.5,1.5,1.5,1.5,2.0,1.0,0.0,1.0]"), "{text}");
}

#[test]
fn percentile_is_exact_for_bfloat16() {
    for (n, percentile) in
        [(1, 99.99), (999, 99.0), (1000, 99.9), (20_000, 99.0), (20_000, 99.99), (5000, 100.0)]
    {
        let mut values: Vec<f32> = normal(n as u64, n);
        values.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits() & 0xffff_0000));
        let kind = ObserverKind::Percentile { percentile };
        let mut o = observer(kind, None);
        values.chunks(777).for_each(|batch| o.observe(batch, &[batch.len()]).unwrap());
        values.sort_by(f32::total_cmp);
        let out = |percent: f64| (n as f64 * percent / 100.0 + 1e-6) as usize;
        let cut = out((100.0 - percentile) / 2.0);
        assert_eq!(o.range(), Some((values[cut], values[n - 1 - cut])), "{n} {percentile}");
        values.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let bound = values[n - 1 - out(100.0 - percentile)].abs();
        assert_eq!(o.ranges_for(8, true), Some(vec![(-bound, bound)]));
        assert_eq!(o.qparams(8, true, true, false).unwrap().scales, [(bound / 127.5).max(f32::EPSILON)]);
        assert_eq!(saved_and_read(&o), o);
    }
}

#[test]
fn percentile_stays_within_the_extremes() {
    let [below, above] = [0.3, 0.3001]; // both round to 0.30078
    assert_eq!(seen(ObserverKind::PERCENTILE, &[&[below, above]]).range(), Some((below, above)));
    let kind = ObserverKind::Percentile { percentile: 60.0 };
    for x in [0.3, 0.302, -0.3, f32::MAX, f32::MIN, 1e-45] {
        let o = seen(kind, &[&[x; 10]]);
        assert_eq!((o.range(), o.ranges_for(8, true)), (Some((x, x)), Some(vec![(-x.abs(), x.abs())])));
    }
}

#[test]
fn facts_are_counted() {
    let mut o = observer(ObserverKind::MinMax, None);
    o.observe(&[1.0; 6], &[2, 3]).unwrap();
    o.observe(&[1.0], &[]).unwrap();
    assert!(o.facts().constant());
    o.observe(&[f32::INFINITY, 2.0], &[1, 2]).unwrap();
    let expected = Facts { batches: 3, samples: 4, values: 9, infinities: 1, extremes: Some((1.0, 2.0)) };
    assert_eq!((*o.facts(), o.facts().constant()), (expected, false));
}
