#!/bin/sh
# Seals each line of standard input for the holder of a key: one token a line on standard output, with openssl alone.
#
#     your-program | seal-lines.sh public.pem
#
# The token is the contract's own (docs/formats/contract.md): a password of 256 random bits under RSA, the line under the password.
# The password goes by file descriptors, never by an argument or a variable of another process.
set -eu
key=$1
while IFS= read -r line || [ -n "$line" ]; do
    password=$(openssl rand -base64 32)
    wrapped=$(printf %s "$password" | openssl pkeyutl -encrypt -pubin -inkey "$key" | openssl base64 -A)
    sealed=$(printf %s "$line" | openssl enc -aes-256-cbc -pbkdf2 -pass fd:3 3<<END | openssl base64 -A
$password
END
    )
    printf 'hyper-protect-basic.%s.%s\n' "$wrapped" "$sealed"
done
