package dashboard

const maxParts = 32
