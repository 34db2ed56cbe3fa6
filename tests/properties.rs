//! Properties of the kernels' CPU twins, on weights that proptest makes up: what must hold of any weights, in the words of
//! the contract rather than of the code. Each property names the kernels that it is about, and every kernel has one.
//! (That shaders make the same bytes is the business of `tests/twins.rs`.)

/// Properties, each with the kernels that it is about; collected in `PROPERTIES`.
macro_rules! properties {
    ($($(#[$about:meta])* [$($kernel:ident)+] fn $name:ident($($what:pat in $from:expr),+) $body:block)+) => {
        proptest::proptest! {
            #![proptest_config(crate::made::config())]
            $($(#[$about])* #[test] fn $name($($what in $from),+) $body)+
        }

        /// Names, and kernels.
        pub const PROPERTIES: &[(&str, &[&str])] = &[$((stringify!($name), &[$(stringify!($kernel)),+])),+];
    };
}

#[path = "properties/blocks.rs"]
mod blocks;
#[path = "properties/codes.rs"]
mod codes;
#[path = "properties/floats.rs"]
mod floats;
#[path = "properties/made.rs"]
mod made;
#[path = "properties/ranges.rs"]
mod ranges;
#[path = "properties/searched.rs"]
mod searched;

use monoquant::kernels;

#[test]
fn every_kernel_has_a_property() {
    let stated =
        [ranges::PROPERTIES, codes::PROPERTIES, searched::PROPERTIES, floats::PROPERTIES, blocks::PROPERTIES]
            .concat();
    for kernel in kernels::ALL {
        let properties = stated.iter().filter(|(_, kernels)| kernels.contains(&kernel.name)).count();
        assert!(properties > 0, "no property is about {}", kernel.name);
    }
    for (name, about) in stated {
        let unknown = about.iter().find(|name| !kernels::ALL.iter().any(|kernel| kernel.name == **name));
        assert_eq!(unknown, None, "{name} is about a kernel that is not there");
    }
}
