import Foundation

/// SHA-256 (FIPS 180-4), as the manifest and jobs have it; CryptoKit is not where the tests run.
public struct Sha256 {
    private var state: [UInt32] = [
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    ]
    private var pending: [UInt8] = []
    /// bytes that are in the state
    private var done = 0

    public init() {}

    public mutating func update(_ bytes: some Sequence<UInt8>) {
        pending += bytes
        var at = 0
        var words = [UInt32](repeating: 0, count: 64)
        pending.withUnsafeBufferPointer { bytes in
            while at + 64 <= bytes.count {
                Sha256.take(bytes, at, &words, &state)
                at += 64
            }
        }
        done += at
        pending.removeFirst(at)
    }

    /// In hexadecimal digits.
    public mutating func hex() -> String {
        let bits = UInt64(done + pending.count) * 8
        var last: [UInt8] = [0x80]
        while (pending.count + last.count) % 64 != 56 { last.append(0) }
        last += (0..<8).map { UInt8(truncatingIfNeeded: bits >> (56 - 8 * $0)) }
        update(last)
        return state.map { word in
            let digits = String(word, radix: 16)
            return String(repeating: "0", count: 8 - digits.count) + digits
        }.joined()
    }

    private static func take(
        _ bytes: UnsafeBufferPointer<UInt8>, _ at: Int, _ w: inout [UInt32], _ state: inout [UInt32]
    ) {
        func turned(_ x: UInt32, _ n: UInt32) -> UInt32 { x >> n | x << (32 - n) }
        for i in 0..<16 {
            let byte = at + 4 * i
            w[i] = UInt32(bytes[byte]) << 24 | UInt32(bytes[byte + 1]) << 16
            w[i] |= UInt32(bytes[byte + 2]) << 8 | UInt32(bytes[byte + 3])
        }
        for i in 16..<64 {
            let low = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3
            let high = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10
            w[i] = w[i - 16] &+ low &+ w[i - 7] &+ high
        }
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0..<64 {
            let high = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
            let first = h &+ high &+ (e & f ^ ~e & g) &+ constants[i] &+ w[i]
            let low = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
            let second = low &+ (a & b ^ a & c ^ b & c)
            (h, g, f, e, d, c, b, a) = (g, f, e, d &+ first, c, b, a, first &+ second)
        }
        for (i, value) in [a, b, c, d, e, f, g, h].enumerated() { state[i] = state[i] &+ value }
    }

    /// The first 32 bits of the fractions of the cube roots of the first 64 primes.
    private static let constants: [UInt32] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ]
}
