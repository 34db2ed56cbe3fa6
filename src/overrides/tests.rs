use super::*;
use crate::scheme::{Method, preset};

fn scheme(name: &str) -> Scheme {
    match preset(name).unwrap().method {
        Method::Quantize(scheme) => scheme,
        Method::Cast(_) | Method::Blocks(_) => unreachable!(),
    }
}

fn parse(text: &str) -> Override {
    text.parse().unwrap()
}

#[test]
fn splits_from_the_right() {
    for (text, pattern, changes) in [
        ("down=bits=8", "down", "bits=8"),
        ("a{1,3}=bits=8,group-size=64", "a{1,3}", "bits=8,group-size=64"),
        ("a,b=c=observer=mse,bits=4", "a,b=c", "bits=4,observer=mse"),
        ("x=bits=8=strategy=channel", "x=bits=8", "strategy=channel"),
        (".*=strategy=group,group-size=32", ".*", "group-size=32"),
        ("é,ü=scheme=asymmetric", "é,ü", "scheme=asymmetric"),
        ("a=group-size=channel,strategy=channel", "a", "strategy=channel"),
    ] {
        let o = parse(text);
        assert_eq!((o.pattern.as_str(), o.changes.to_string().as_str()), (pattern, changes));
        let again = parse(&o.to_string());
        assert_eq!((again.pattern.as_str(), again.changes), (pattern, o.changes));
    }
}

#[test]
fn errors_name_the_bad_part() {
    for (text, part) in [
        ("", "'' is not KEY=VALUE"),
        ("down", "'down' is not KEY=VALUE"),
        ("bits=8", "the regex is missing"),
        ("=bits=8", "the regex is missing"),
        ("bits=8,group-size=64", "the regex is missing"),
        ("x=bit=8", "'bit' is not a key"),
        ("x=bits=8,grup=64", "'grup' is not a key"),
        ("x=bits=8,64", "'64' is not KEY=VALUE"),
        ("x=bits=8,", "'' is not KEY=VALUE"),
        ("x=bits=5", "bits is 4, 8 or 16"),
        ("x=group-size=0", "at least 1, or channel"),
        ("x=group-size=-1", "at least 1, or channel"),
        ("x=group-size=99999999999999999999999", "at least 1, or channel"),
        ("x=strategy=block", "tensor, channel or group"),
        ("x=scheme=affine", "symmetric or asymmetric"),
        ("x=observer=max", "minmax, percentile, histogram or mse"),
        ("x=bits=8,bits=4", "bits is given twice"),
        ("x=strategy=channel,group-size=64", "contradicts"),
        ("x=group-size=64,strategy=tensor", "contradicts"),
        ("(=bits=8", "'(' is not a regular expression"),
    ] {
        let error = text.parse::<Override>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(error.contains(ACCEPTED));
    }
}

#[test]
fn another_width_is_weight_only() {
    let (w8a8, w4a16) = (scheme("w8a8"), scheme("w4a16"));
    let to = |base, text: &str| parse(text).changes.apply(base);
    let four = to(w8a8, "x=bits=4").unwrap();
    assert_eq!((four.bits, four.activations), (4, Activations::Float));
    assert_eq!(four.strategy, Strategy::Group { group_size: 128 });
    let four = to(w8a8, "x=bits=4,group-size=32").unwrap();
    assert_eq!(four.strategy, Strategy::Group { group_size: 32 });
    let eight = to(w4a16, "x=bits=8").unwrap();
    assert_eq!((eight.activations, eight.strategy), (Activations::Float, Strategy::Channel));
    let eight = to(w4a16, "x=bits=8,group-size=64").unwrap();
    assert_eq!(eight.strategy, Strategy::Group { group_size: 64 });
    assert_eq!(to(w8a8, "x=bits=8"), Some(w8a8));
    assert_eq!(to(w8a8, "x=bits=16"), None);
}

#[test]
fn later_changes_win_key_by_key() {
    let base = scheme("w4a16");
    let both = |a: &str, b: &str| parse(a).changes.then(parse(b).changes).apply(base).unwrap();
    let s = both("x=bits=8,observer=mse", "x=observer=histogram");
    assert_eq!((s.bits, s.observer), (8, Observer::Histogram));
    assert_eq!(both("x=group-size=32", "x=strategy=channel").strategy, Strategy::Channel);
    let grouped = both("x=group-size=32", "x=strategy=group").strategy;
    assert_eq!(grouped, Strategy::Group { group_size: 32 });
    let kept = Scheme { observer: Observer::Percentile(99.0), ..base };
    assert_eq!(parse("x=observer=percentile").changes.apply(kept), Some(kept));
}
