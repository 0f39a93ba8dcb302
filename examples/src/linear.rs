//! Small symmetric matrices.

/// Inverse of a square matrix, or nothing when it is (nearly) singular. Gauss and Jordan, with pivots.
#[must_use]
pub fn invert<const N: usize>(matrix: &[[f64; N]; N]) -> Option<[[f64; N]; N]> {
    let mut left = *matrix;
    let mut right = [[0.0; N]; N];
    for (index, row) in right.iter_mut().enumerate() {
        row[index] = 1.0;
    }
    for column in 0..N {
        let pivot = (column..N).max_by(|a, b| left[*a][column].abs().total_cmp(&left[*b][column].abs()))?;
        left.swap(column, pivot);
        right.swap(column, pivot);
        let divisor = left[column][column];
        if !divisor.is_normal() {
            return None;
        }
        for row in [&mut left[column], &mut right[column]] {
            row.iter_mut().for_each(|value| *value /= divisor);
        }
        let (left_pivot, right_pivot) = (left[column], right[column]);
        for row in (0..N).filter(|row| *row != column) {
            let factor = left[row][column];
            for k in 0..N {
                left[row][k] -= factor * left_pivot[k];
                right[row][k] -= factor * right_pivot[k];
            }
        }
    }
    right.iter().flatten().all(|value| value.is_finite()).then_some(right)
}

/// Product of a matrix and a vector.
#[must_use]
pub fn times<const N: usize>(matrix: &[[f64; N]; N], vector: &[f64; N]) -> [f64; N] {
    matrix.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_times_its_inverse_is_one() {
        let matrix = [[0.0, 2.0, 1.0], [2.0, 5.0, -3.0], [1.0, -3.0, 10.0]];
        let inverse = invert(&matrix).expect("regular");
        // The matrix is symmetric, so its inverse is too: rows are columns.
        for (axis, column) in inverse.iter().enumerate() {
            for (row, value) in times(&matrix, column).into_iter().enumerate() {
                let expected = if row == axis { 1.0 } else { 0.0 };
                assert!((value - expected).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_singular_matrix_has_no_inverse() {
        assert!(invert(&[[1.0, 2.0], [2.0, 4.0]]).is_none());
    }
}
