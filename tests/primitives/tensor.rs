//! TMA copies of tensors, element by element: inside and outside the tensor, with every swizzle.

use burrstone::device::TmaBoxes;
use burrstone::device::sim::{Fault, FaultKind, Swizzle, TensorMap};

use crate::probe::{Probe, Random, bytes};

/// A tensor of u16 and a box in it, innermost dimension first.
struct Case {
    dims: Vec<usize>,
    /// Distance in elements between neighbours along each dimension.
    steps: Vec<usize>,
    sides: Vec<usize>,
    at: Vec<i32>,
    swizzle: Swizzle,
}

fn case(rank: usize, random: &mut Random) -> Case {
    let (swizzle, inner) = [
        (Swizzle::None, 8 * (1 + random.next() as usize % 3)),
        (Swizzle::Bytes32, 16),
        (Swizzle::Bytes64, 32),
        (Swizzle::Bytes128, 64),
    ][random.next() as usize % 4];
    let mut sides = vec![inner];
    let mut dims = vec![8 + random.next() as usize % 150];
    let mut steps = vec![1];
    let mut step = (dims[0] + random.next() as usize % 9).next_multiple_of(8);
    for d in 1..rank {
        sides.push(1 + random.next() as usize % [0, 12, 4, 2, 2][d]);
        dims.push(1 + random.next() as usize % 7);
        steps.push(step);
        step *= dims[d];
    }
    let at = (0..rank).map(|d| (random.next() as usize % (dims[d] + sides[d])) as i32 - sides[d] as i32 / 2).collect();
    Case { dims, steps, sides, at, swizzle }
}

impl Case {
    /// Passes the probe a tensor map of the tensor at `address`.
    fn copy_boxes(&self, probe: &mut Probe, address: u64) {
        let dims: Vec<u64> = self.dims.iter().map(|d| *d as u64).collect();
        let strides: Vec<u64> = self.steps[1..].iter().map(|s| *s as u64 * 2).collect();
        let sides: Vec<u32> = self.sides.iter().map(|s| *s as u32).collect();
        let (dims, strides, sides, swizzle) = (&dims, &strides, &sides, self.swizzle);
        probe.copy_boxes(&TmaBoxes { address, element_bytes: 2, dims, strides, sides, swizzle });
    }

    fn tensor_len(&self) -> usize {
        self.steps.last().unwrap() * self.dims.last().unwrap()
    }

    fn box_len(&self) -> usize {
        self.sides.iter().product()
    }

    /// For each element of the box: its position in shared memory, and in the tensor if it is inside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let all = (0..self.box_len()).map(|i| {
            let (mut rest, mut index) = (i, Some(0));
            for d in 0..self.dims.len() {
                let x = i64::from(self.at[d]) + (rest % self.sides[d]) as i64;
                rest /= self.sides[d];
                let inside = x >= 0 && x < self.dims[d] as i64;
                index = index.filter(|_| inside).map(|index| index + x as usize * self.steps[d]);
            }
            let (row, piece) = (i / self.sides[0], i % self.sides[0] / 8);
            let piece = match self.swizzle {
                Swizzle::None => piece,
                Swizzle::Bytes32 => piece ^ (row / 4 % 2),
                Swizzle::Bytes64 => piece ^ (row / 2 % 4),
                Swizzle::Bytes128 => piece ^ (row % 8),
            };
            (row * self.sides[0] + piece * 8 + i % 8, index)
        });
        all.collect()
    }
}

fn load(case: &Case, way: &str, tensor: &[u16], seed: u64) -> Result<Vec<u16>, Fault> {
    let mut probe = Probe::new(seed, [&bytes(tensor), &[], &bytes(&case.at)], case.box_len() * 2);
    probe.n = case.box_len() as u32 / 2;
    let tensor = probe.input(0);
    case.copy_boxes(&mut probe, tensor);
    probe.launch(&format!("tensor__d{}_{way}_t32", case.dims.len()), 1)?;
    Ok(probe.out())
}

#[test]
fn a_box_loads_its_elements_and_zero_fill() {
    for rank in 1..=5 {
        for seed in 0..60 {
            let mut random = Random::new(seed * 5 + rank as u64);
            let case = case(rank, &mut random);
            let tensor: Vec<u16> = (0..case.tensor_len()).map(|_| random.next() as u16 | 1).collect();
            let found = load(&case, "way_load", &tensor, seed).unwrap_or_else(|fault| panic!("{fault}"));
            let mut expected = vec![0; case.box_len()];
            case.elements().into_iter().for_each(|(to, from)| expected[to] = from.map_or(0, |i| tensor[i]));
            assert_eq!(
                found, expected,
                "rank {rank}, seed {seed}, {:?} at {:?} of {:?}",
                case.sides, case.at, case.dims
            );
        }
    }
}

#[test]
fn a_box_stores_its_elements_and_nothing_else() {
    for rank in 1..=5 {
        for seed in 0..60 {
            let mut random = Random::new(seed * 5 + rank as u64);
            let case = case(rank, &mut random);
            let content: Vec<u16> = (0..case.box_len()).map(|_| random.next() as u16).collect();
            let mut probe = Probe::new(seed, [&bytes(&content), &[], &bytes(&case.at)], case.tensor_len() * 2);
            probe.n = case.box_len() as u32 / 2;
            let tensor = probe.out_address();
            case.copy_boxes(&mut probe, tensor);
            // Elements that no store reaches keep their initial NaN.
            let mut expected = vec![u16::MAX; case.tensor_len()];
            for (from, to) in case.elements() {
                if let Some(to) = to {
                    expected[to] = content[from];
                }
            }
            assert_eq!(
                probe.run::<u16>(&format!("tensor__d{rank}_way_store_t32")),
                expected,
                "rank {rank}, seed {seed}"
            );
        }
    }
}

#[test]
fn loads_and_stores_of_boxes_need_a_wait_on_the_simulator() {
    let mut random = Random::new(1);
    for seed in 0..10 {
        let case = case(2, &mut random);
        let fault = load(&case, "way_load_no_wait", &vec![1; case.tensor_len()], seed).unwrap_err();
        assert!(matches!(*fault.kind, FaultKind::InFlight { .. } | FaultKind::UninitialisedShared { .. }), "{fault}");
        let content = vec![1_u16; case.box_len()];
        let mut probe = Probe::new(seed, [&bytes(&content), &[], &bytes(&case.at)], case.tensor_len() * 2);
        probe.n = case.box_len() as u32 / 2;
        let tensor = probe.out_address();
        case.copy_boxes(&mut probe, tensor);
        let fault = probe.launch("tensor__d2_way_store_no_wait_t32", 1).unwrap_err();
        assert!(matches!(*fault.kind, FaultKind::Misuse { .. }), "{fault}");
        assert!(probe.out::<u16>().iter().all(|x| *x == u16::MAX), "a store landed before its wait");
        let fault = probe.launch("tensor__d2_way_store_no_fence_t32", 1).unwrap_err();
        assert!(matches!(*fault.kind, FaultKind::Unfenced { .. }), "{fault}");
    }
}

#[test]
fn maps_that_cuda_would_refuse_are_refused_on_the_simulator() {
    let tiled = |address, element, dims: &[u64], strides: &[u64], sides: &[u32], swizzle| {
        TensorMap::tiled(address, element, dims, strides, sides, swizzle).map(|_| ()).map_err(|e| e.field)
    };
    assert_eq!(tiled(256, 2, &[64, 9], &[128], &[64, 9], Swizzle::Bytes128), Ok(()));
    assert_eq!(tiled(8, 2, &[64, 9], &[128], &[64, 9], Swizzle::None), Err("address"));
    assert_eq!(tiled(256, 3, &[64, 9], &[128], &[64, 9], Swizzle::None), Err("element"));
    assert_eq!(tiled(256, 2, &[64, 0], &[128], &[64, 9], Swizzle::None), Err("dims"));
    assert_eq!(tiled(256, 2, &[60, 9], &[120], &[64, 9], Swizzle::None), Err("strides"));
    assert_eq!(tiled(256, 2, &[64, 9], &[128], &[64, 257], Swizzle::None), Err("box"));
    assert_eq!(tiled(256, 2, &[64, 9], &[128], &[36, 9], Swizzle::None), Err("box"));
    assert_eq!(tiled(256, 2, &[64, 9], &[128], &[32, 9], Swizzle::Bytes128), Err("box"));
    assert_eq!(tiled(256, 2, &[64, 9], &[], &[64, 9], Swizzle::None), Err("rank"));
}
