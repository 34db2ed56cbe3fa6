//! Pickles in a sound archive: lies about tensors, calls, and opcodes that no checkpoint needs.

use crate::{archive::around, opcodes::*, open_bytes, refuses};

fn weight(tensor: Bytes) -> Bytes {
    around(&pickle(&dict(&[("w", tensor)])))
}

#[test]
fn tensors_beyond_their_storage() {
    let past = &["tensor `w` reaches past the end of its storage of 64 bytes"][..];
    let negative = "that are no whole numbers from 0 on";
    let two = [int(2), int(2)];
    let numbers = |n: &[i64]| tuple(&n.iter().map(|&n| int(n)).collect::<Vec<_>>());
    let float = || storage("FloatStorage", "1", int(16));
    let cases: &[(&str, Bytes, &[&str])] = &[
        (
            "a storage of more than its record",
            tensor(17, 0, &[17], &[1]),
            &["storage `1` of 68 bytes", "64 of them: cut off, or damaged"],
        ),
        ("an offset at the end", tensor(16, 16, &[1], &[1]), past),
        ("an offset near 2^63", tensor(16, i64::MAX, &[1], &[1]), past),
        ("a stride past the end", tensor(16, 0, &[2], &[16]), past),
        ("a stride near 2^63", tensor(16, 0, &[2], &[i64::MAX]), past),
        (
            "strides that overflow",
            tensor(16, 0, &[3, 3, 3], &[i64::MAX, i64::MAX, 1]),
            &["64 bits can count"],
        ),
        ("a negative size", tensor(16, 0, &[-1], &[1]), &["has sizes", negative]),
        ("a negative stride", tensor(16, 0, &[4], &[-1]), &["has strides", negative]),
        (
            "a negative offset",
            tensor(16, -4, &[4], &[1]),
            &["has an offset that is no whole number from 0 on"],
        ),
        ("a negative storage", tensor(-16, 0, &[1], &[1]), &["storage that is not described as torch does"]),
        (
            "a size of 2^64",
            rebuild(float(), int(0), tuple(&[huge()]), numbers(&[1])),
            &["has sizes", negative],
        ),
        ("an offset of 2^64", rebuild(float(), huge(), numbers(&[1]), numbers(&[1])), &["has an offset"]),
        (
            "a size that is text",
            rebuild(float(), int(0), tuple(&[text("4")]), numbers(&[1])),
            &["has sizes", negative],
        ),
        (
            "sizes that are a number",
            rebuild(float(), int(0), int(4), numbers(&[1])),
            &["has sizes that are no tuple"],
        ),
        ("65 dimensions", tensor(16, 0, &[1; 65], &[1; 65]), &["has 65 dimensions; accepted: up to 64"]),
        ("fewer strides", tensor(16, 0, &[2, 2], &[1]), &["has 2 sizes and 1 strides"]),
        (
            "2^64 elements",
            tensor(16, 0, &[1 << 32, 1 << 32], &[0, 0]),
            &["[4294967296, 4294967296]", "64 bits can count"],
        ),
        ("2^64 bytes", tensor(16, 0, &[1 << 62], &[0]), &["64 bits can count"]),
        (
            "a storage of 2^64 bytes",
            tensor(1 << 62, 0, &[1], &[1]),
            &["storage of more bytes than 64 bits can count"],
        ),
        (
            "elements repeated to 4 TiB",
            tensor(16, 0, &[1 << 40], &[0]),
            &["repeats the elements of a storage of 64 bytes"],
        ),
        (
            "no such storage",
            rebuild(storage("FloatStorage", "9", int(4)), int(0), numbers(&[4]), numbers(&[1])),
            &["storage `9`, which the file does not have"],
        ),
        (
            "a path as storage",
            rebuild(storage("FloatStorage", "../data/0", int(4)), int(0), numbers(&[4]), numbers(&[1])),
            &["storage `../data/0`, which the file does not have"],
        ),
        (
            "no such dtype",
            rebuild(storage("FooStorage", "1", int(4)), int(0), numbers(&[4]), numbers(&[1])),
            &["has the dtype FooStorage", "accepted: BOOL"],
        ),
        (
            "no storage",
            rebuild(b"N".to_vec(), int(0), numbers(&[4]), numbers(&[1])),
            &["lies in a None instead of a storage"],
        ),
        (
            "a persistent id that is no tuple",
            rebuild(b"NQ".to_vec(), int(0), numbers(&[4]), numbers(&[1])),
            &["not described as torch does"],
        ),
        (
            "a persistent id of two",
            rebuild([tuple(&two), b"Q".to_vec()].concat(), int(0), numbers(&[4]), numbers(&[1])),
            &["not described as torch does"],
        ),
        (
            "a call of two values",
            call("torch._utils._rebuild_tensor_v2", &two),
            &["is rebuilt from 2 values"],
        ),
        (
            "a parameter of nothing",
            call("torch._utils._rebuild_parameter", &[]),
            &["from something that is no tensor"],
        ),
    ];
    for (what, tensor, parts) in cases {
        refuses(what, &weight(tensor.clone()), &[&["tensor `w`"], *parts].concat());
    }
    let wrapped = (0..12).fold(sound(), |t, _| call("torch._utils._rebuild_parameter", &[t]));
    refuses("parameters in parameters", &weight(wrapped), &["tensor `w` is wrapped too often"]);
    // Nothing of these lies anywhere.
    for empty in [tensor(0, 0, &[0], &[1]), tensor(16, 1 << 40, &[0, 1 << 40], &[1, 1])] {
        assert_eq!(open_bytes(&weight(empty)).unwrap().tensors()[0].info.bytes(), 0);
    }
    let repeated = open_bytes(&weight(tensor(16, 3, &[3, 2, 5], &[0, 1, 0]))).unwrap();
    assert_eq!(repeated.tensors()[0].info.shape, [3, 2, 5]);
    refuses(
        "a name twice",
        &around(&pickle(&dict(&[("w", sound()), ("w", sound())]))),
        &["tensor `w` is there twice"],
    );
}

#[test]
fn calls_are_named_and_not_made() {
    let canary = std::env::temp_dir().join(format!("monoquant-canary-{}", std::process::id()));
    let command = text(&format!("touch {}", canary.display()));
    for name in [
        "os.system",
        "posix.system",
        "nt.system",
        "builtins.eval",
        "builtins.exec",
        "builtins.getattr",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "runpy._run_code",
        "collections.OrderedDict.__reduce__",
        "torch._utils.sys.modules",
        "operator.attrgetter",
    ] {
        let arguments = tuple(std::slice::from_ref(&command));
        let inst = |(module, name): (&str, &str)| {
            [b"(", &command[..], format!("i{module}\n{name}\n").as_bytes()].concat()
        };
        for (how, value) in [
            ("GLOBAL, REDUCE", [global(name), arguments.clone(), b"R".to_vec()].concat()),
            ("STACK_GLOBAL, REDUCE", [stack_global(name), arguments.clone(), b"R".to_vec()].concat()),
            ("INST", inst(name.rsplit_once('.').unwrap())),
            ("OBJ", [b"(", &global(name)[..], &command, b"o"].concat()),
            ("NEWOBJ, BUILD", [&global(name)[..], &arguments, b"\x81}b"].concat()),
            ("NEWOBJ_EX", [&global(name)[..], &arguments, b"}\x92"].concat()),
            ("alone", global(name)),
            ("popped", [global(name), b"0N".to_vec()].concat()),
        ] {
            let parts = ["x.pt: holds a pickled `", name, "nothing was run", "torch.save(model.state_dict()"];
            refuses(how, &weight(value.clone()), &parts);
            refuses(how, &around(&pickle(&dict(&[("w", sound()), ("x", value)]))), &parts);
        }
    }
    assert!(!canary.exists());
    refuses("Python 2", &weight(global("__builtin__.eval")), &["`builtins.eval`"]);
    let long = [text(&"a".repeat(1 << 20)), text("b"), b"\x93".to_vec()].concat();
    refuses("a long name", &weight(long), &["names a class by 1048577 bytes"]);
    refuses("no text", &weight(b"NN\x93".to_vec()), &["names a class by something that is no text"]);
    refuses("no function", &weight(b"N)R".to_vec()), &["calls something that is no function"]);
    refuses(
        "a function with state",
        &weight(b"ctorch\nSize\n}b".to_vec()),
        &["sets the state of something that has none"],
    );
}

#[test]
fn opcodes_that_make_no_sense() {
    let cut = &["the pickle is cut off"][..];
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("EXT1", b"\x82\x01", &["opcode 0x82, which no checkpoint needs"]),
        ("EXT2", b"\x83\x01\0", &["opcode 0x83"]),
        ("EXT4", b"\x84\x01\0\0\0", &["opcode 0x84"]),
        ("PERSID", b"P1\n", &["opcode 0x50"]),
        ("NEXT_BUFFER", b"\x97", &["opcode 0x97"]),
        ("zeros", &[0; 100], &["opcode 0x00"]),
        ("a protocol to come", b"\x80\x06", &["the unknown protocol 6"]),
        ("BINUNICODE of 4 GiB", b"X\xff\xff\xff\xffa", &["a string that claims 4294967295 bytes"]),
        (
            "BINUNICODE8 of 2^63",
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa",
            &["claims 9223372036854775807 bytes"],
        ),
        ("BINUNICODE of 400 MiB", b"X\0\0\0\x19a", cut),
        ("LONG4 of 2 GiB", b"\x8b\xff\xff\xff\x7f", &["claims 2147483647 bytes"]),
        ("LONG4 of -1", b"\x8b\xff\xff\xff\xff", &["claims 4294967295 bytes"]),
        ("BINSTRING of 4 GiB", b"T\xff\xff\xff\xffa", &["claims 4294967295 bytes"]),
        ("BINBYTES of 4 GiB", b"B\xff\xff\xff\xffa", cut),
        ("BINBYTES8 of 2^63", b"\x8e\0\0\0\0\0\0\0\x80", cut),
        ("BINBYTES8 of 2^62", b"\x8e\0\0\0\0\0\0\0\x40", cut),
        ("BYTEARRAY8 of 2^64", b"\x96\xff\xff\xff\xff\xff\xff\xff\xff", cut),
        ("a float cut off", b"G\0", cut),
        (
            "LONG_BINGET of nothing",
            b"j\xff\xff\xff\xff",
            &["refers to value 4294967295, which it has not made"],
        ),
        ("GET of nothing", b"g7\n", &["refers to value 7"]),
        ("GET of text", b"gx\n", &["remembers a value under what is no number"]),
        ("GET of 2^32", b"g4294967296\n", &["remembers a value under what is no number"]),
        ("INT of text", b"Ix\n", &["has a number that is none"]),
        ("a line without end", &[b'I'; 5000], &["a line without end"]),
        ("text that is none", b"X\x01\0\0\0\xff", &["text that is not UTF-8"]),
        ("a name that is none", b"c\xff\n\n", &["a line that is not UTF-8"]),
        ("PUT of nothing", b"000q\0", &["takes more values than it has made"]),
        ("DUP of nothing", b"002", &["takes more values"]),
        ("TUPLE3 of two", b"0N\x87", &["takes more values"]),
        ("POP_MARK without a mark", b"011", &["takes more values"]),
        ("values below a mark", b"N(R", &["takes more values"]),
        ("OBJ of nothing", b"(o", &["makes an object of no class"]),
        ("SETITEM on text", b"X\0\0\0\0NNs", &["sets items of something that has none"]),
        ("SETITEMS with an odd number", b"}(Nu", &["sets a key without a value"]),
        ("APPEND to a tuple", b")Na", &["appends to something that is no list"]),
        ("BUILD of None", b"NNb", &["sets the state of something that has none"]),
        (
            "a dict of a list of numbers",
            b"ccollections\nOrderedDict\n(](K\x01et\x52",
            &["makes a dict of what are no pairs"],
        ),
    ];
    for (what, opcodes, parts) in cases {
        let bytes = [b"\x80\x02}X\x01\0\0\0w", *opcodes].concat();
        refuses(what, &around(&bytes), &[&["x.pt: the pickle "], *parts].concat());
    }
    refuses("no STOP", &around(&dict(&[("w", sound())])), cut);
    refuses("nothing but STOP", &around(b"."), &["takes more values"]);
    refuses("nothing", &around(b""), cut);
    let far =
        around(&pickle(&dict(&[("w", [put(&sound(), u32::MAX), b"0".to_vec(), get(u32::MAX)].concat())])));
    assert_eq!(open_bytes(&far).unwrap().tensors().len(), 1);
    // numbers of any size are no error where they are no tensor's
    let numbers =
        [huge(), b"L-99999999999999999999L\n".to_vec(), b"I99999999999999999999\n".to_vec()].concat();
    let beside = around(&pickle(&[dict(&[("w", sound())]), b"(".to_vec(), numbers, b"1".to_vec()].concat()));
    assert_eq!(open_bytes(&beside).unwrap().tensors().len(), 1);
}

#[test]
fn roots_that_are_no_state_dict() {
    for (what, root, parts) in [
        ("None", b"N".to_vec(), ["holds a None; accepted: a dict of names and tensors"]),
        ("text", text("x"), ["holds a str; accepted"]),
        ("a tensor", sound(), ["holds a single tensor; accepted"]),
        ("an empty dict", b"}".to_vec(), ["holds a dict without tensors"]),
        ("a dict of numbers", dict(&[("a", int(1))]), ["holds a dict without tensors"]),
        (
            "tensors under numbers",
            [b"}K\x01".to_vec(), sound(), b"s".to_vec()].concat(),
            ["holds a dict without tensors"],
        ),
    ] {
        refuses(what, &around(&pickle(&root)), &parts);
    }
}
