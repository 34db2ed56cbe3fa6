use std::collections::BTreeMap;

use ::safetensors::SafeTensors;

use super::*;
use crate::tensor::{Dtype, TensorInfo};

/// The bytes before the tensors of a safetensors file.
fn first_bytes(layout: &FileLayout) -> Result<Vec<u8>> {
    Ok(layout.place()?.fixed.remove(0).1)
}

fn info(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
}

fn layout(name: &str, tensors: &[TensorInfo]) -> FileLayout {
    let metadata = BTreeMap::from([("format".into(), "pt".into()), ("by".into(), "\"us\"\n".into())]);
    FileLayout { name: name.into(), tensors: tensors.to_vec(), metadata, ..FileLayout::default() }
}

fn mixed() -> FileLayout {
    let tensors = [
        info("odd", Dtype::U8, &[7]),
        info("z", Dtype::BF16, &[3, 5]),
        info("none", Dtype::I64, &[0, 4]),
        info("a", Dtype::F32, &[2, 2]),
        info("b", Dtype::F16, &[1]),
        info("ключ\"\\", Dtype::F64, &[]),
    ];
    layout("model.safetensors", &tensors)
}

fn content(t: &TensorInfo) -> Vec<u8> {
    (0..t.bytes()).map(|i| (i as u8).wrapping_mul(31) ^ t.name.len() as u8).collect()
}

/// Fills all tensors of the layouts, in pieces and from the last to the first.
fn fill(writer: &Writer, layouts: &[FileLayout]) {
    for (f, layout) in layouts.iter().enumerate() {
        for (t, info) in layout.tensors.iter().enumerate().rev() {
            let bytes = content(info);
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            writer.write(f, t, head.len() as u64, tail).unwrap();
            writer.write(f, t, 0, head).unwrap();
        }
    }
}

fn write(dest: &Destination, layouts: &[FileLayout], force: bool) -> Result<()> {
    let writer = Writer::create(dest, layouts.to_vec(), force)?;
    fill(&writer, layouts);
    writer.commit().map(drop)
}

/// Names in a directory, hidden ones too.
fn names(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn says(result: Result<impl Sized>, texts: &[&str]) -> Error {
    let error = result.err().expect("should fail");
    let message = error.to_string();
    for text in texts {
        assert!(message.contains(text), "`{text}` is not in: {message}");
    }
    error
}

#[test]
fn the_reference_reads_what_is_written() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("out.safetensors");
    let layout = mixed();
    write(&Destination::File(path.clone()), std::slice::from_ref(&layout), false).unwrap();
    assert_eq!(names(tmp.path()), ["out.safetensors"]);

    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, layout.size().unwrap());
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["by"], "\"us\"\n");
    let read = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), layout.tensors.len());
    for (i, t) in layout.tensors.iter().enumerate() {
        let view = read.tensor(&t.name).unwrap();
        assert_eq!(view.data(), content(t));
        assert_eq!(view.shape(), t.shape);
        assert_eq!(format!("{:?}", view.dtype()), t.dtype.name());
        let offset = layout.offsets().unwrap()[i];
        assert!(bytes[offset as usize..].starts_with(&content(t)));
        assert!(offset.is_multiple_of(t.dtype.size() as u64), "{} is not aligned", t.name);
    }
    let start = first_bytes(&layout).unwrap().len();
    assert_eq!(start % 64, 0);
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) + 8, start as u64);
    assert!(bytes[8..].starts_with(br#"{"__metadata__":{"by":"\"us\"\n","format":"pt"},""#));

    let checkpoint = crate::reader::Checkpoint::open(&path).unwrap();
    let found: Vec<_> = checkpoint.tensors().iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(found, ["none", "ключ\"\\", "a", "b", "z", "odd"]);
    let source = checkpoint.source().unwrap();
    for (i, t) in checkpoint.tensors().iter().enumerate() {
        let mut out = vec![0; t.info.bytes() as usize];
        source.read(i, 0, &mut out).unwrap();
        assert_eq!(out, content(&t.info));
    }
}

#[test]
fn equal_inputs_give_equal_bytes() {
    let mut turned = mixed();
    turned.tensors.reverse();
    assert_eq!(first_bytes(&turned).unwrap(), first_bytes(&mixed()).unwrap());
    let mut offsets = turned.offsets().unwrap();
    offsets.reverse();
    assert_eq!(offsets, mixed().offsets().unwrap());
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let t = info("t", Dtype::U8, &[1]);
    for name in ["", "..", ".", "a/b", "/a", "a/.."] {
        says(layout(name, std::slice::from_ref(&t)).size(), &["not the name of a file"]);
    }
    says(layout("m", &[t.clone(), t.clone()]).size(), &["`t`", "taken"]);
    says(first_bytes(&layout("m", &[info("__metadata__", Dtype::U8, &[1])])), &["taken"]);
    says(layout("m", &[info("t", Dtype::F64, &[usize::MAX, 2])]).offsets(), &["`t`", "too large"]);
    let half = info("t", Dtype::U8, &[1 << 63]);
    let other = info("u", Dtype::U8, &[1 << 63]);
    says(layout("m", &[half, other]).size(), &["too large"]);

    let tmp = tempfile::tempdir().unwrap();
    let dest = Destination::Directory(tmp.path().join("out"));
    let one = layout("1.safetensors", std::slice::from_ref(&t));
    let two = layout("2.safetensors", &[t]);
    says(Writer::create(&dest, vec![one.clone(), one.clone()], false), &["two output files"]);
    says(Writer::create(&dest, vec![one.clone(), two.clone()], false), &["`t`", "another"]);
    let file = Destination::File(tmp.path().join("out"));
    says(Writer::create(&file, vec![], false), &["0 layouts"]);
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn a_directory_with_companions() {
    let tmp = tempfile::tempdir().unwrap();
    let dest = Destination::Directory(tmp.path().join("out"));
    let layouts: Vec<_> = (0..100)
        .map(|i| layout(&format!("{i}.safetensors"), &[info(&format!("t{i}"), Dtype::U8, &[i])]))
        .collect();
    let mut writer = Writer::create(&dest, layouts.clone(), false).unwrap();
    fill(&writer, &layouts);
    assert!(writer.handles.count() <= crate::reader::handles::OPEN);
    writer.add_file(Path::new("config.json"), b"{}").unwrap();
    let from = tmp.path().join("from");
    fs::write(&from, "words").unwrap();
    writer.copy_file(&from, Path::new("sub/deep/vocab.txt")).unwrap();
    for name in ["config.json", "5.safetensors", "../x", "/x", "", "a/../b"] {
        says(writer.add_file(Path::new(name), b""), &["cannot"]);
    }
    says(writer.copy_file(&tmp.path().join("absent"), Path::new("y")), &["absent", "cannot open"]);
    writer.commit().unwrap();
    fs::remove_file(&from).unwrap();

    let out = tmp.path().join("out");
    assert_eq!(names(tmp.path()), ["out"]);
    assert_eq!(names(&out).len(), 102);
    assert_eq!(fs::read(out.join("sub/deep/vocab.txt")).unwrap(), b"words");
    let bytes = fs::read(out.join("99.safetensors")).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("t99").unwrap().data().len(), 99);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (dir, file) = (tmp.path().join("plain"), tmp.path().join("plain.txt"));
        fs::create_dir(&dir).unwrap();
        fs::write(&file, "").unwrap();
        let single = tmp.path().join("single.safetensors");
        write(&Destination::File(single.clone()), &[mixed()], false).unwrap();
        assert_eq!(mode(&out), mode(&dir));
        assert_eq!(mode(&single), mode(&file));
        assert_eq!(mode(&out.join("99.safetensors")), mode(&file));
    }
}

#[test]
fn existing_destinations_are_safe_without_force() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, dir) = (tmp.path().join("f.safetensors"), tmp.path().join("d"));
    fs::write(&file, "mine").unwrap();
    fs::create_dir(&dir).unwrap();
    for dest in [Destination::File(file.clone()), Destination::Directory(dir.clone())] {
        let error = says(write(&dest, &[mixed()], false), &["exists already", "--force"]);
        assert!(matches!(error, Error::Refused(_)) && error.exit_code() == 2);
    }
    for force in [false, true] {
        let dest = Destination::File(dir.clone());
        says(write(&dest, &[mixed()], force), &["not a file"]);
        let dest = Destination::Directory(file.clone());
        says(write(&dest, &[mixed()], force), &["not a directory"]);
    }
    let absent = Destination::File(tmp.path().join("no/such/f.safetensors"));
    says(write(&absent, &[mixed()], true), &["no/such does not exist", "create it"]);
    says(write(&Destination::File(file.join("x")), &[mixed()], true), &["not a directory"]);
    for name in ["..", "/", "."] {
        says(write(&Destination::Directory(name.into()), &[mixed()], true), &["name of its own"]);
    }
    assert_eq!(names(tmp.path()), ["d", "f.safetensors"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[test]
fn what_appears_meanwhile_is_safe() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, dir) = (tmp.path().join("f.safetensors"), tmp.path().join("d"));
    for dest in [Destination::File(file.clone()), Destination::Directory(dir.clone())] {
        let writer = Writer::create(&dest, vec![mixed()], false).unwrap();
        fill(&writer, &[mixed()]);
        match &dest {
            Destination::File(path) => fs::write(path, "mine").unwrap(),
            other => fs::create_dir(other.path()).unwrap(),
        }
        let error = says(writer.commit(), &["--force"]);
        assert!(matches!(error, Error::Refused(_)));
    }
    assert_eq!(names(tmp.path()), ["d", "f.safetensors"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    assert!(names(&dir).is_empty());
}

#[test]
fn force_replaces_a_model_and_nothing_else() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, dir) = (tmp.path().join("f.safetensors"), tmp.path().join("d"));
    fs::write(&file, "old").unwrap();
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/thesis.tex"), "years of work").unwrap();
    let dest = Destination::Directory(dir.clone());
    says(write(&dest, &[mixed()], true), &["does not look like a model"]);
    fs::write(dir.join("config.json"), "{}").unwrap();
    says(write(&dest, &[mixed()], true), &["does not look like a model"]);
    fs::write(dir.join("model.safetensors"), "").unwrap();
    write(&dest, &[mixed()], true).unwrap();
    write(&Destination::File(file.clone()), &[mixed()], true).unwrap();
    assert_eq!(names(tmp.path()), ["d", "f.safetensors"]);
    assert_eq!(names(&dir), ["model.safetensors"]);
    assert_eq!(fs::read(&file).unwrap(), fs::read(dir.join("model.safetensors")).unwrap());
    // An empty directory is nobody's, and force needs nothing to replace.
    fs::create_dir(tmp.path().join("e")).unwrap();
    for name in ["e", "new"] {
        write(&Destination::Directory(tmp.path().join(name)), &[mixed()], true).unwrap();
        assert_eq!(names(&tmp.path().join(name)), ["model.safetensors"]);
    }
}

#[cfg(unix)]
#[test]
fn links_stay_links() {
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("disk/d")).unwrap();
    let link = tmp.path().join("link");
    std::os::unix::fs::symlink("disk/d", &link).unwrap();
    write(&Destination::Directory(link.clone()), &[mixed()], true).unwrap();
    assert!(link.is_symlink());
    assert_eq!(names(&tmp.path().join("disk/d")), ["model.safetensors"]);
    assert_eq!(names(tmp.path()), ["disk", "link"]);
    std::os::unix::fs::symlink("nowhere", tmp.path().join("dangling")).unwrap();
    let dangling = Destination::File(tmp.path().join("dangling"));
    says(write(&dangling, &[mixed()], true), &["dangling", "cannot follow the link"]);
}

#[test]
fn an_unfinished_output_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let (file, dir) = (tmp.path().join("f.safetensors"), tmp.path().join("d"));
    fs::write(&file, "old").unwrap();
    for dest in [Destination::File(file.clone()), Destination::Directory(dir.clone())] {
        let writer = Writer::create(&dest, vec![mixed()], true).unwrap();
        let temporary = names(tmp.path()).into_iter().find(|n| n.contains(".monoquant-")).unwrap();
        let name = dest.path().file_name().unwrap().to_str().unwrap();
        assert!(temporary.starts_with(&format!(".{name}.monoquant-")), "{temporary}");
        writer.write(0, 0, 0, &[1; 7]).unwrap();
        drop(writer);
        assert_eq!(names(tmp.path()), ["f.safetensors"]);

        // A byte short, and a byte twice.
        for (offset, length) in [(0, 6), (1, 7)] {
            let writer = Writer::create(&dest, vec![mixed()], true).unwrap();
            for (t, info) in mixed().tensors.iter().enumerate().skip(1) {
                writer.write(0, t, 0, &content(info)).unwrap();
            }
            writer.write(0, 0, 0, &[1; 7][..length]).unwrap();
            writer.write(0, 0, 0, &[1; 7][..offset]).unwrap();
            says(writer.commit(), &["internal error", "`odd`", "of its 7 bytes"]);
            assert_eq!(names(tmp.path()), ["f.safetensors"]);
        }
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }
}

#[test]
fn writes_outside_a_tensor_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let dest = Destination::Directory(tmp.path().join("d"));
    let writer = Writer::create(&dest, vec![mixed()], false).unwrap();
    says(writer.write(0, 0, 1, &[0; 7]), &["`odd`", "past its 7 bytes"]);
    says(writer.write(0, 0, u64::MAX, &[0; 7]), &["`odd`"]);
    says(writer.write(0, 6, 0, &[0]), &["no such tensor"]);
    says(writer.write(1, 0, 0, &[0]), &["no such tensor"]);
    let view = View::contiguous(3, 5);
    says(writer.write_view(0, 1, &view, 0..3, 4, &[0; 60]), &["whole elements"]);
    says(writer.write_view(0, 1, &view, 0..3, 0, &[]), &["whole elements"]);
    says(writer.write_view(0, 1, &view, 0..3, 2, &[0; 28]), &["another number"]);
    says(writer.write_view(0, 1, &View::contiguous(3, 6), 0..3, 2, &[0; 36]), &["past the 15"]);
    let folded = View { row_stride: 4, ..view };
    says(writer.write_view(0, 1, &folded, 0..3, 2, &[0; 30]), &["reach into each other"]);
}

#[test]
fn views_from_many_threads_fill_a_tensor() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("f.safetensors");
    // Two matrices of 64 x 96, each transposed, their columns in turns: every write is a rewrite of shared bytes.
    let (rows, cols) = (64usize, 96usize);
    let layout = layout("f.safetensors", &[info("w", Dtype::I16, &[cols, rows, 2])]);
    let writer = Writer::create(&Destination::File(path.clone()), vec![layout], false).unwrap();
    let value = |half: usize, r: usize, c: usize| (half * 10_000 + r * 100 + c) as u16;
    let start = std::sync::Barrier::new(16);
    std::thread::scope(|scope| {
        for job in 0..16 {
            let (writer, start) = (&writer, &start);
            scope.spawn(move || {
                start.wait();
                let (half, part) = (job % 2, job / 2 * 8..job / 2 * 8 + 8);
                let view =
                    View { offset: half as u64, rows, cols, row_stride: 2, col_stride: 2 * rows as u64 };
                for r in part {
                    let bytes: Vec<u8> = (0..cols).flat_map(|c| value(half, r, c).to_le_bytes()).collect();
                    writer.write_view(0, 0, &view, r..r + 1, 2, &bytes).unwrap();
                }
            });
        }
    });
    writer.commit().unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor("w").unwrap().data().as_chunks().0.to_vec();
    for (i, got) in data.into_iter().enumerate() {
        let (c, r, half) = (i / 2 / rows, i / 2 % rows, i % 2);
        assert_eq!(u16::from_le_bytes(got), value(half, r, c));
    }
}

#[test]
fn a_full_disk_shows_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("f.safetensors");
    let free = free_bytes(&path).unwrap();
    assert!(free > 0);
    let layout = layout("f.safetensors", &[info("w", Dtype::U8, &[free as usize * 2, 64])]);
    let created = Writer::create(&Destination::File(path), vec![layout], false);
    says(created, &["f.safetensors", "the output takes", "are free"]);
    assert!(names(tmp.path()).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn directories_are_replaced_where_swapping_is_unknown() {
    let tmp = tempfile::tempdir().unwrap();
    let (a, b) = (tmp.path().join("a"), tmp.path().join("b"));
    fs::create_dir(&a).unwrap();
    fs::write(a.join("old"), "").unwrap();
    let (new, aside) = (tmp.path().join("new"), tmp.path().join("aside"));
    fs::create_dir(&new).unwrap();
    fs::write(new.join("fresh"), "").unwrap();
    destination::replace_in_steps(&new, &a, &aside).unwrap();
    assert_eq!((names(tmp.path()), names(&a)), (vec!["a".into(), "aside".into()], vec!["fresh".into()]));
    assert_eq!(names(&aside), ["old"]);

    // The second step fails, as the new directory is gone: the old one comes back.
    fs::rename(&aside, &b).unwrap();
    says(destination::replace_in_steps(&new, &a, &aside), &["cannot move the output"]);
    assert_eq!((names(tmp.path()), names(&a)), (vec!["a".into(), "b".into()], vec!["fresh".into()]));
}
