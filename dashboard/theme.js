// The theme that was chosen by hand, before anything is painted. A module would run
// after that.
"use strict";
try {
  const theme = localStorage.getItem("usagekit-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage here: the theme is the one that the system prefers.
}
