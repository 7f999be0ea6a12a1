package jinja

import (
	"fmt"
	"strings"
	"time"
)

// strftime formats as C's strftime does in the C locale, with glibc's padding
// flags (%-d, %_d, %0d, %^a).
func strftime(b *strings.Builder, t time.Time, format string) {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		start := i
		i++
		flag := byte(0)
		if strings.IndexByte("-_0^#", format[i]) >= 0 && i+1 < len(format) {
			flag = format[i]
			i++
		}
		text, ok := directive(t, format[i])
		if !ok { // glibc prints what it does not know
			text = format[start : i+1]
		}
		switch flag {
		case '-', '_':
			if stripped := strings.TrimLeft(text, "0 "); stripped != text {
				if stripped == "" || stripped[0] < '0' || stripped[0] > '9' {
					stripped = "0" + stripped
				}
				if flag == '_' {
					stripped = strings.Repeat(" ", len(text)-len(stripped)) + stripped
				}
				text = stripped
			}
		case '0':
			text = strings.ReplaceAll(text, " ", "0")
		case '^', '#':
			text = strings.ToUpper(text)
		}
		b.WriteString(text)
	}
}

func directive(t time.Time, c byte) (string, bool) {
	two := func(n int) (string, bool) { return fmt.Sprintf("%02d", n), true }
	hour12 := (t.Hour()+11)%12 + 1
	switch c {
	case 'Y':
		return fmt.Sprintf("%d", t.Year()), true
	case 'C':
		return two(t.Year() / 100)
	case 'y':
		return two(t.Year() % 100)
	case 'm':
		return two(int(t.Month()))
	case 'd':
		return two(t.Day())
	case 'e':
		return fmt.Sprintf("%2d", t.Day()), true
	case 'H':
		return two(t.Hour())
	case 'k':
		return fmt.Sprintf("%2d", t.Hour()), true
	case 'I':
		return two(hour12)
	case 'l':
		return fmt.Sprintf("%2d", hour12), true
	case 'M':
		return two(t.Minute())
	case 'S':
		return two(t.Second())
	case 'f':
		return fmt.Sprintf("%06d", t.Nanosecond()/1000), true
	case 'j':
		return fmt.Sprintf("%03d", t.YearDay()), true
	case 'w':
		return fmt.Sprintf("%d", int(t.Weekday())), true
	case 'u':
		return fmt.Sprintf("%d", (int(t.Weekday())+6)%7+1), true
	case 'U':
		return two((t.YearDay() + 6 - int(t.Weekday())) / 7)
	case 'W':
		return two((t.YearDay() + 6 - (int(t.Weekday())+6)%7) / 7)
	case 'V':
		_, week := t.ISOWeek()
		return two(week)
	case 'G':
		year, _ := t.ISOWeek()
		return fmt.Sprintf("%d", year), true
	case 'g':
		year, _ := t.ISOWeek()
		return two(year % 100)
	case 's':
		return fmt.Sprintf("%d", t.Unix()), true
	case 'Z', 'z': // datetime.now() knows no zone
		return "", true
	case 'n':
		return "\n", true
	case 't':
		return "\t", true
	case '%':
		return "%", true
	case 'P':
		return strings.ToLower(t.Format("PM")), true
	}
	layouts := map[byte]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'p': "PM",
		'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05",
		'D': "01/02/06", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'r': "03:04:05 PM",
	}
	layout, ok := layouts[c]
	return t.Format(layout), ok
}
