// Elements in groups of four, of any of the three kinds, and linear forms of them in float32.
#pragma once

constexpr int COLUMNS_AT_ONCE = 4;  // loads on their way together; more would cost registers

DEVICE float float_of_bfloat(unsigned short bits) { return float_of(static_cast<unsigned>(bits) << 16); }

// Round to nearest, ties to even.
DEVICE unsigned short bfloat_of_float(float value) {
    const unsigned bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<unsigned short>(bits >> 16 | 0x40u);  // NaN
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

DEVICE float small_to_float(unsigned short bits, int kind) {
    return kind == FLOAT16 ? float_of_half(bits) : float_of_bfloat(bits);
}

DEVICE unsigned short float_to_small(float value, int kind) {
    return kind == FLOAT16 ? half_of_float(value) : bfloat_of_float(value);
}

// Elements at .. at + width of a tensor, width from 1 to 4; those beyond it are 0. A whole group of
// an aligned tensor is one access: 16 bytes of float32, 8 of the halves.
DEVICE void load(float (&values)[4], Address tensor, int kind, long long at, int width, bool aligned) {
    const bool whole = aligned && width == 4;
    if (kind == FLOAT32) {
        const Address first = tensor + at * 4;
        if (whole) {
            const float4 four = object<const float4>(first);
            values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) values[e] = e < width ? object<const float>(first + 4 * e) : 0.0f;
        }
        return;
    }
    const Address first = tensor + at * 2;
    ushort4 four = {0, 0, 0, 0};
    if (whole) {
        four = object<const ushort4>(first);
    } else {
        four.x = object<const unsigned short>(first);
        if (width > 1) four.y = object<const unsigned short>(first + 2);
        if (width > 2) four.z = object<const unsigned short>(first + 4);
        if (width > 3) four.w = object<const unsigned short>(first + 6);
    }
    values[0] = small_to_float(four.x, kind), values[1] = small_to_float(four.y, kind);
    values[2] = small_to_float(four.z, kind), values[3] = small_to_float(four.w, kind);
}

DEVICE void store(const float (&values)[4], Address tensor, int kind, long long at, int width, bool aligned) {
    const bool whole = aligned && width == 4;
    if (kind == FLOAT32) {
        const Address first = tensor + at * 4;
        if (whole) {
            object<float4>(first) = {values[0], values[1], values[2], values[3]};
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (e < width) object<float>(first + 4 * e) = values[e];
        }
        return;
    }
    const Address first = tensor + at * 2;
    const ushort4 four = {float_to_small(values[0], kind), float_to_small(values[1], kind),
                          float_to_small(values[2], kind), float_to_small(values[3], kind)};
    if (whole) {
        object<ushort4>(first) = four;
    } else {
        object<unsigned short>(first) = four.x;
        if (width > 1) object<unsigned short>(first + 2) = four.y;
        if (width > 2) object<unsigned short>(first + 4) = four.z;
        if (width > 3) object<unsigned short>(first + 6) = four.w;
    }
}

// One group of a column. Where it is guided: (c - u) * g + u, in the order of the CPU lanes.
DEVICE void load_column(float (&values)[4], const Forms &forms, int c, long long at, int width) {
    load(values, forms.columns[c], forms.kinds[c], at, width, forms.aligned);
    if (forms.conditional[c] == 0) return;
    float guided[4];
    load(guided, forms.conditional[c], forms.kinds[c], at, width, forms.aligned);
    const float guidance = forms.guidance_at ? object<const float>(forms.guidance_at) : forms.guidance;
#pragma unroll
    for (int e = 0; e < 4; ++e)
        values[e] = __fadd_rn(__fmul_rn(__fsub_rn(guided[e], values[e]), guidance), values[e]);
}

// The rows of one group of a picture, to the bit what Table.apply of sampling/tables.py computes:
// products and sums in the order of the columns, each rounded to float32.
template <int ROWS>
DEVICE void evaluate(float (&sums)[ROWS][4], const Forms &forms, int picture, long long at, int width) {
    const long long own = static_cast<long long>(picture) * forms.rows * forms.column_count;
    // -0 is what leaves every first term as it is, zeros included.
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[r][e] = -0.0f;
    for (int first = 0; first < forms.column_count; first += COLUMNS_AT_ONCE) {
        float values[COLUMNS_AT_ONCE][4];
#pragma unroll
        for (int k = 0; k < COLUMNS_AT_ONCE; ++k)
            if (forms.terms[first + k]) load_column(values[k], forms, first + k, at, width);
#pragma unroll
        for (int k = 0; k < COLUMNS_AT_ONCE; ++k) {
            const int c = first + k;
            const unsigned terms = forms.terms[c];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (!(terms >> r & 1u)) continue;
                const float factor =
                    forms.per_picture
                        ? object<const float>(forms.per_picture + 4 * (own + r * forms.column_count + c))
                        : forms.coefficients[c][r];
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[r][e] = __fadd_rn(sums[r][e], __fmul_rn(values[k][e], factor));
            }
        }
    }
}
